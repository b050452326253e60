"""Carries the optimizer's updates of compressed variables back to the full weights, one projection at a time."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax import lax

from jaxremat.compact.consume import Uses, group_key
from jaxremat.compact.projection import projection
from jaxremat.compact.selection import Compression


def drawn_late(key: jax.Array, arrays: list[jax.Array]) -> tuple[jax.Array, list[jax.Array]]:
    """The same key, known only once `arrays` are.

    Without it the compiler would keep the forward pass's projections until the update instead of drawing them again.
    """
    words, arrays = lax.optimization_barrier((jax.random.key_data(key), arrays))
    return jax.random.wrap_key_data(words, impl=jax.random.key_impl(key)), arrays


def moved_weight(weight, variable, compression: Compression, uses: Uses, key, scale: float, rate) -> jax.Array:
    """(1 + rate) W + scale * P U for a full weight W and the update U of its compressed variable."""
    view = _View(compression, uses.layers[compression.leaf])
    wide = jnp.promote_types(weight.dtype, jnp.float32)
    matrices, variables = view.full(weight), view.small(variable)

    def move(i, w, u):
        drawn = projection(view.key(uses, key, i), w.shape[0], u.shape[0])
        step = lax.dot(drawn, u.astype(drawn.dtype), preferred_element_type=wide)
        return (w.astype(wide) * (1 + rate) + scale * step).astype(w.dtype)

    if len(matrices) == 1:
        moved = move(0, matrices[0], variables[0])[None]
    else:
        body = lambda i, all_: all_.at[i].set(move(i, all_[i], variables[i]))
        moved = lax.fori_loop(0, len(matrices), body, matrices)
    return view.restored(moved)


def shrunk_weight(weight, compression: Compression, uses: Uses, key) -> jax.Array:
    """Pᵀ W, shaped like the compressed variable: what an optimizer sees of a weight that it wants to read."""
    view = _View(compression, uses.layers[compression.leaf])
    matrices = view.full(weight)

    def shrink(i):
        drawn = projection(view.key(uses, key, i), matrices.shape[1], compression.rank)
        return (drawn.T @ matrices[i]).astype(weight.dtype)

    return view.restored_small(lax.map(shrink, jnp.arange(len(matrices))))


@dataclasses.dataclass(frozen=True)
class _View:
    """A weight as [layers, input, output] and its compressed variable as [layers, rank, output]."""

    compression: Compression
    layers: tuple[int, ...]

    @property
    def order(self) -> tuple[int, ...]:
        first = (*self.layers, *self.compression.in_axes)
        return (*first, *(a for a in range(len(self.compression.shape)) if a not in first))

    @property
    def small_order(self) -> tuple[int, ...]:
        """The same order on the compressed variable's axes."""
        gone = self.compression.in_axes[1:]
        return tuple(a - sum(g < a for g in gone) for a in self.order if a not in gone)

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(self.compression.shape[a] for a in self.layers)

    def key(self, uses: Uses, key, i) -> jax.Array:
        return group_key(uses, key, self.compression.leaf, jnp.unravel_index(i, self.sizes) if self.sizes else ())

    def full(self, weight) -> jax.Array:
        width = math.prod(self.compression.shape[a] for a in self.compression.in_axes)
        return weight.transpose(self.order).reshape(math.prod(self.sizes), width, -1)

    def small(self, variable) -> jax.Array:
        return variable.transpose(self.small_order).reshape(math.prod(self.sizes), self.compression.rank, -1)

    def restored(self, matrices) -> jax.Array:
        shape = [self.compression.shape[a] for a in self.order]
        return matrices.reshape(shape).transpose(_inverse(self.order))

    def restored_small(self, matrices) -> jax.Array:
        n_first = len(self.layers) + len(self.compression.in_axes)
        outputs = [self.compression.shape[a] for a in self.order[n_first:]]
        shape = (*self.sizes, self.compression.rank, *outputs)
        return matrices.reshape(shape).transpose(_inverse(self.small_order))


def _inverse(order: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(range(len(order)), key=order.__getitem__))
