"""A Flax NNX layer that says in the model what is compressed.

grads = nnx.grad(loss)(model, x)
optimizer.update(model, grads)      # nnx.Optimizer(model, tx, wrt=nnx.Param)
fold(model)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxremat.compact.layer import compressed_dense, fold_kernel, layer_rank

_lecun_normal = nnx.initializers.lecun_normal()


class Compact(nnx.Variable[Any]):
    """What a compressed layer holds beside its trainable parameters: full kernel, state of its projection."""


class Linear(nnx.Module):
    """`flax.nnx.Linear` that keeps a projection of its input for the backward pass.

    `full_kernel` is the weight; the parameter `kernel` is its compressed variable, [rank, out_features].

    Args:
      in_features, out_features: widths.
      rank: width of the projection, an int or a fraction of the input width.
      share: a layer that reads the same input, such as the query layer for key and value: both have its projection.
      use_bias, dtype, param_dtype, kernel_init, rngs: as in `flax.nnx.Linear`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        rank: int | float,
        rngs: nnx.Rngs,
        share: Linear | None = None,
        use_bias: bool = True,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        kernel_init: Callable[..., Any] = _lecun_normal,
    ) -> None:
        self.dtype = dtype
        self.full_kernel = Compact(kernel_init(rngs.params(), (in_features, out_features), param_dtype))
        self.kernel = nnx.Param(jnp.zeros((layer_rank(rank, in_features), out_features), param_dtype))
        self.bias = nnx.Param(jnp.zeros(out_features, param_dtype)) if use_bias else None
        drawn = jax.random.randint(rngs.params(), (), 0, 2**31 - 1)
        self.salt: Compact = Compact(share.salt[...] if share else drawn)
        self.epoch = Compact(jnp.zeros((), jnp.int32))
        self.steps = Compact(jnp.zeros((), jnp.int32))

    def __call__(self, x: jax.Array) -> jax.Array:
        bias = None if self.bias is None else self.bias[...]
        arrays = (x, self.full_kernel[...], self.kernel[...], bias)
        x, kernel, variable, bias = nnx.nn.dtypes.promote_dtype(arrays, dtype=self.dtype)
        y = compressed_dense(x, kernel, variable, self.salt[...], self.epoch[...])
        return y if bias is None else y + bias


def fold(model: nnx.Module, *, scale: float = 0.25, refresh_every: int = 200) -> None:
    """Moves an optimizer step of every `Linear` in the model into its full kernel, in place.

    Args:
      model: after `optimizer.update`; compressed variables are zero again afterwards and the step is counted.
      scale: factor on the updates.
      refresh_every: steps between new projections.
    """
    for _, layer in nnx.iter_graph(model):
        if isinstance(layer, Linear):
            state = (layer.full_kernel[...], layer.kernel[...], layer.salt[...], layer.epoch[...])
            layer.full_kernel[...] = fold_kernel(*state, scale)
            layer.kernel[...] = jnp.zeros_like(layer.kernel[...])
            layer.steps[...] = layer.steps[...] + 1
            layer.epoch[...] = layer.steps[...] // refresh_every
