"""What the linen and nnx layers share: a dense product with a compressed variable, and its fold into the weight.

The full kernel is no trainable parameter. The trainable one is the compressed variable, zero before each optimizer
step; `fold` moves what the optimizer put there into the kernel, sets it back to zero and counts the step.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxremat.base.shapes import Inexact
from jaxremat.compact.projection import projection, with_derivative
from jaxremat.compact.selection import check_rank, rank_of


def layer_rank(rank: int | float, width: int) -> int:
    """The width of a layer's projection: at most that of its input."""
    return min(width, rank_of(check_rank(rank), (width,), (0,)))


def compressed_dense(
    x: Inexact[jax.Array, "*batch n"],
    kernel: Inexact[jax.Array, "n m"],
    variable: Inexact[jax.Array, "r m"],
    salt: Any,
    epoch: Any,
) -> Inexact[jax.Array, "*batch m"]:
    """x @ kernel, whose backward pass keeps x @ P for the gradient of `variable`.

    Args:
      x: [..., n].
      kernel: [n, m]; no gradient reaches it.
      variable: [r, m], read for its derivative only.
      salt, epoch: integer scalars that decide P.

    Returns:
      [..., m].
    """
    matrix = _projection(salt, epoch, kernel.shape[0], variable.shape[0]).astype(x.dtype)
    value = lax.dot_general(x, lax.stop_gradient(kernel).astype(x.dtype), (((x.ndim - 1,), (0,)), ((), ())))
    left = lax.stop_gradient(x) @ matrix
    return with_derivative(jnp.matmul, value, left, variable.astype(x.dtype))


def fold_kernel(kernel: Any, variable: Any, salt: Any, epoch: Any, scale: float) -> jax.Array:
    """kernel + scale * P variable; leading axes of all four arguments are stacked layers."""
    if kernel.ndim > 2:
        stacked = {"kernel": kernel, "variable": variable, "salt": salt, "epoch": epoch}
        return lax.map(lambda layer: fold_kernel(**layer, scale=scale), stacked)
    matrix = _projection(salt, epoch, kernel.shape[0], variable.shape[0])
    return (kernel + scale * (matrix @ variable.astype(matrix.dtype))).astype(kernel.dtype)


def _projection(salt: Any, epoch: Any, n: int, r: int) -> jax.Array:
    return projection(jax.random.fold_in(jax.random.key(salt), epoch), n, r)
