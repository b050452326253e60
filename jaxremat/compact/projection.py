"""Random projections and the derivative that reads them (CompAct, Shamshoum et al., NAACL 2025).

For y = xW with W of n x m, a random P of n x r with entries N(0, 1/r) has E[P Pᵀ] = I. The variable Z (r x m) that
stands for W during training enters as y = xW + (xP)Z at Z = 0: the value is exact, the gradient for x is exact, and the
gradient for Z is (xP)ᵀ ∂y = Pᵀ ∂W, so the backward pass reads xP where it would have read x.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxremat.base.dtypes import promoted
from jaxremat.base.shapes import Float


def projection(key: jax.Array, n: int, r: int, dtype: Any = jnp.float32) -> Float[jax.Array, "{n} {r}"]:
    """A random projection whose outer product with itself is the identity in expectation.

    Args:
      key: [], a PRNG key; the same key gives the same projection.
      n: width that is projected.
      r: width after the projection.
      dtype: of the result.

    Returns:
      [n, r], entries drawn from N(0, 1/r).
    """
    return (jax.random.normal(key, (n, r)) / math.sqrt(r)).astype(dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def with_derivative(product: Callable[..., Any], value: jax.Array, left: jax.Array, variable: jax.Array) -> jax.Array:
    """`value`, whose derivative along `variable` is `product(left, tangent)`.

    It means value + product(left, variable) where the variable is zero, without computing the zero.

    Args:
      product: bilinear and hashable; only its second argument is differentiated.
      value: what comes back unchanged.
      left: what the backward pass keeps.
      variable: read for its derivative only.
    """
    del product, left, variable
    return value


@with_derivative.defjvp
def _with_derivative_jvp(product: Any, primals: Any, tangents: Any) -> Any:
    value, left, _ = primals
    value_tangent, _, variable_tangent = tangents
    return value, value_tangent + product(left, variable_tangent)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def lift(
    expand: Callable[..., Any], draw: Callable[..., Any], value: jax.Array, variable: jax.Array, key: jax.Array
) -> jax.Array:
    """`value`, whose cotangent reaches `variable` through a projection that is drawn again in the backward pass.

    For weights inside functions that bring their own differentiation rule: the rule's full weight gradient is projected
    as soon as it exists.

    Args:
      expand: linear in its second argument: (projection, variable) -> an array like `value`.
      draw: key -> projection.
      value: the weight.
      variable: its compressed variable.
      key: raw words of a PRNG key.
    """
    del expand, draw, variable, key
    return value


def _lift_forward(expand: Any, draw: Any, value: Any, variable: Any, key: Any) -> Any:
    del expand, draw
    return value, (variable, key)


def _lift_backward(expand: Any, draw: Any, residuals: Any, cotangent: Any) -> Any:
    variable, key = residuals
    pull = jax.linear_transpose(functools.partial(expand, draw(key)), variable)
    return None, pull(cotangent)[0], None


lift.defvjp(_lift_forward, _lift_backward)


def compressed_shape(shape: Sequence[int], in_axes: Sequence[int], rank: int) -> tuple[int, ...]:
    """Shape of a weight's compressed variable: the first input axis becomes `rank`, the other input axes go."""
    kept = [a for a in range(len(shape)) if a == in_axes[0] or a not in in_axes]
    return tuple(rank if a == in_axes[0] else shape[a] for a in kept)


def rank_last(variable: jax.Array, in_axes: Sequence[int]) -> jax.Array:
    """The compressed variable with its rank axis moved to the end."""
    return jnp.moveaxis(variable, in_axes[0], -1)


def expand(in_axes: tuple[int, ...], shape: tuple[int, ...], matrix: jax.Array, variable: jax.Array) -> jax.Array:
    """Takes a compressed variable back to a weight's shape: the product P Z.

    Args:
      in_axes: the weight's input axes, ascending.
      shape: the weight's shape.
      matrix: the projection, [product of the input sizes, rank].
      variable: the kept axes in the weight's order, then the rank.

    Returns:
      An array of `shape`, accumulated in the wider of the two dtypes.
    """
    sizes = [shape[a] for a in in_axes]
    wide = promoted(matrix.dtype, variable.dtype)
    rows = lax.dot_general(matrix.astype(wide), variable.astype(wide), (((1,), (variable.ndim - 1,)), ((), ())))
    return jnp.moveaxis(rows.reshape(*sizes, *variable.shape[:-1]), range(len(sizes)), in_axes)
