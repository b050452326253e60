"""A Flax linen layer that says in the model what is compressed.

variables = model.init(key, x)                       # {"params": ..., "compact": ...}
params, compact = variables["params"], variables["compact"]
grads = jax.grad(lambda p: loss(model.apply({"params": p, "compact": compact}, x)))(params)
updates, opt_state = optimizer.update(grads, opt_state, params)
params, compact = fold(optax.apply_updates(params, updates), compact)
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxremat.compact.layer import compressed_dense, fold_kernel, layer_rank


class Dense(nn.Module):
    """`flax.linen.Dense` that keeps a projection of its input for the backward pass.

    The collection `compact` holds the full kernel; the parameter `kernel` is its compressed variable, [rank, features].
    Under `nn.scan` give the collection an axis as well: `variable_axes={"params": 0, "compact": 0}`.

    Attributes:
      features: output width.
      rank: width of the projection, an int or a fraction of the input width.
      share: layers of one parent module with the same word here have the same projection: use it for layers that read
        the same input, such as query, key and value.
      seed: of the projections.
      use_bias, dtype, param_dtype, kernel_init, bias_init: as in `flax.linen.Dense`.
    """

    features: int
    rank: int | float
    share: str | None = None
    seed: int = 0
    use_bias: bool = True
    dtype: Any = None
    param_dtype: Any = jnp.float32
    kernel_init: Callable[..., Any] = nn.initializers.lecun_normal()
    bias_init: Callable[..., Any] = nn.initializers.zeros_init()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        place = (*self.path[:-1], self.share) if self.share else self.path
        word = zlib.crc32(f"{self.seed}/{'/'.join(map(str, place))}".encode()) >> 1
        make_kernel = lambda: self.kernel_init(self.make_rng("params"), (width, self.features), self.param_dtype)
        kernel = self.variable("compact", "kernel", make_kernel).value
        salt = self.variable("compact", "salt", lambda: jnp.asarray(word, jnp.int32)).value
        epoch = self.variable("compact", "epoch", lambda: jnp.zeros((), jnp.int32)).value
        self.variable("compact", "steps", lambda: jnp.zeros((), jnp.int32))
        shape = layer_rank(self.rank, width), self.features
        variable = self.param("kernel", nn.initializers.zeros_init(), shape, self.param_dtype)
        bias = self.param("bias", self.bias_init, (self.features,), self.param_dtype) if self.use_bias else None
        x, kernel, variable, bias = nn.dtypes.promote_dtype(x, kernel, variable, bias, dtype=self.dtype)
        y = compressed_dense(x, kernel, variable, salt, epoch)
        return y if bias is None else y + bias


def fold(params: Any, compact: Any, *, scale: float = 0.25, refresh_every: int = 200) -> tuple[Any, Any]:
    """Moves an optimizer step from the compressed variables into the full kernels.

    Args:
      params: the collection `params` after `optax.apply_updates`.
      compact: the collection `compact`.
      scale: factor on the updates.
      refresh_every: steps between new projections.

    Returns:
      Both collections: compressed variables zero again, the step counted.
    """
    trained, full = flatten_dict(params), flatten_dict(compact)
    for path in [path for path in full if path[-1] == "kernel"]:
        salt, epoch, steps = ((*path[:-1], name) for name in ("salt", "epoch", "steps"))
        full[path] = fold_kernel(full[path], trained[path], full[salt], full[epoch], scale)
        full[steps] = full[steps] + 1
        full[epoch] = full[steps] // refresh_every
        trained[path] = jnp.zeros_like(trained[path])
    return unflatten_dict(trained), unflatten_dict(full)
