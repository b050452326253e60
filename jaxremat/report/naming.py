"""What people call a value: after the function or the layer that made it, and after what it is for."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxremat.base.compat import Eqn
from jaxremat.trace import jaxpr as jaxprs

_CONTRACTIONS = frozenset({"dot_general", "ragged_dot_general", "conv_general_dilated"})
_OF_SOFTMAX = {"div": "softmax weights", "exp": "softmax exponentials"}
_RANDOM = frozenset({"uniform", "bernoulli", "normal", "truncated_normal", "bits", "random_bits"})
_PLAIN = frozenset({"dot", "matmul", "select", "where", "full", "full_like", "zeros_like", "ones_like", "square"})
"""Functions of JAX that say no more than their primitive does."""
LOSSES = frozenset({"cross entropy", "log_softmax", "logsumexp"})
"""Labels of what reads a model's logits."""


def label_of(eqn: Eqn, function: str, library: str, path: str) -> str:
    """What people call the result of an equation.

    Args:
      eqn: the equation.
      function: the function of JAX that the program called, such as `gelu`, or empty.
      library: the class of the layer, or else the function of a library, that called it; or empty.
      path: its module path.
    """
    primitive = eqn.primitive.name
    if primitive in _CONTRACTIONS:
        return f"{_layer(library)} {primitive}".strip()
    name = _called(function, library, path)
    if name == "softmax":
        return _OF_SOFTMAX.get(primitive, name)
    is_mask = bool(eqn.outvars) and jaxprs.dtype_of(eqn.outvars[0]) == jnp.bool_
    return f"{name} mask".strip() if is_mask else name or primitive


def is_activation(function: str) -> bool:
    """Whether a function is one of `jax.nn` that makes an array from an array."""
    return hasattr(jax.nn, function) and function not in ("dot_product_attention", "identity")


def _called(function: str, library: str, path: str) -> str:
    """The name of the function or layer, or empty where the primitive says it best."""
    if "cross_entropy" in library:
        return "cross entropy"
    if "dropout" in f"{library} {path.rpartition('/')[2]}".lower():
        return "dropout"
    if is_activation(function):
        return function
    if _layer(library):
        return library
    if function in _RANDOM:
        return "random"
    return "" if function in _PLAIN else function


def _layer(library: str) -> str:
    return library if library[:1].isupper() else ""
