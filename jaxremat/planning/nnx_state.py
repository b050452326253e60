"""Modules of Flax NNX among arguments: what a call changes in them is changed outside the traced program, too.

Used where Flax is loaded; nothing here loads it.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any

import jax

from jaxremat.trace.arguments import Same

_TAG = "jaxremat"


def holds_modules(tree: Any) -> bool:
    """Whether a tree holds modules or variables of Flax NNX."""
    nnx = sys.modules.get("flax.nnx")
    if nnx is None:
        return False
    is_stateful = lambda x: isinstance(x, nnx.Variable | nnx.Pytree)
    return any(map(is_stateful, jax.tree.leaves(tree, is_leaf=is_stateful)))


def with_owner_as_argument(fun: Callable) -> tuple[Callable, tuple]:
    """A function and the arguments to put first: a module that is called, or whose method `fun` is, is an argument."""
    owner = fun.__self__ if inspect.ismethod(fun) else fun
    if not holds_modules(owner):
        return fun, ()
    return (fun.__func__ if inspect.ismethod(fun) else type(owner).__call__), (owner,)


def carrying_state(fun: Callable, transform: Callable[[Callable], Callable], has_aux: bool = False) -> Callable:
    """`transform(fun)`, for a transform of functions of arrays and a function whose arguments hold modules.

    Args:
      fun: the function.
      transform: receives `fun` as a function of trees; the state of modules is part of what it takes and returns,
        with auxiliary results where there are such.
      has_aux: whether `fun` returns (result, auxiliary data).

    Returns:
      A function of (placed, *args, **kwargs), as the transformed ones are.
    """
    nnx = sys.modules["flax.nnx"]
    general = nnx.transforms.general

    @functools.wraps(fun)
    def pure(args, kwargs):
        (args, kwargs), out = merged(args, kwargs)
        return (out[0], (out[1], args, kwargs)) if has_aux else (out, args, kwargs)

    merged = general.merge_inputs(lambda args, kwargs: fun(*args, **kwargs), ctxtag=_TAG)
    transformed = transform(pure)

    def of_trees(placed, args, kwargs):
        out, *state = transformed((placed.value, None), args, kwargs)
        if has_aux:
            aux, *state = state[0]
            out = out, aux
        return (None, *state), out

    @functools.wraps(fun)
    def stateful(placed, *args, **kwargs):
        split = general.split_inputs(of_trees, ctxtag=_TAG)
        return nnx.update_context(_TAG)(split)(Same(placed), args, kwargs)

    return stateful
