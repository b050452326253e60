"""Carries the optimizer's updates of compressed variables back to the full weights, one projection at a time."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxremat.base.dtypes import promoted
from jaxremat.compact.projection import projection
from jaxremat.compact.selection import Compression
from jaxremat.compact.weight_tracer import Uses, group_key


def drawn_late(key: jax.Array, arrays: list[jax.Array]) -> tuple[jax.Array, list[jax.Array]]:
    """The same key, known only once `arrays` are.

    Without it the compiler would keep the forward pass's projections until the update instead of drawing them again.
    """
    words, arrays = lax.optimization_barrier((jax.random.key_data(key), arrays))
    return jax.random.wrap_key_data(words, impl=jax.random.key_impl(key)), arrays


@dataclasses.dataclass(frozen=True, eq=False)
class Projections:
    """The projections of one step.

    Attributes:
      uses: which weights share one, and which loops have one per iteration.
      key: what they are drawn from.
    """

    uses: Uses
    key: jax.Array

    def of(self, view: _View, i: Any) -> jax.Array:
        """The key of layer `i` of a weight."""
        position = jnp.unravel_index(i, view.sizes) if view.sizes else ()
        return group_key(self.uses, self.key, view.compression.leaf, position)

    def view(self, compression: Compression) -> _View:
        return _View(compression, self.uses.layers[compression.leaf])


def moved_weight(
    weight: Any, variable: Any, compression: Compression, projections: Projections, *, scale: Any, rate: Any
) -> jax.Array:
    """(1 + rate) W + scale * P U for a full weight W and the update U of its compressed variable."""
    view = projections.view(compression)
    wide = promoted(weight.dtype, jnp.float32)
    matrices, variables = view.full(weight), view.small(variable)

    def move(i: Any, w: Any, u: Any) -> Any:
        drawn = projection(projections.of(view, i), w.shape[0], u.shape[0])
        step = lax.dot(drawn, u.astype(drawn.dtype), preferred_element_type=wide)
        return (w.astype(wide) * (1 + rate) + scale * step).astype(w.dtype)

    if len(matrices) == 1:
        moved = move(0, matrices[0], variables[0])[None]
    else:
        body = lambda i, all_: all_.at[i].set(move(i, all_[i], variables[i]))
        moved = lax.fori_loop(0, len(matrices), body, matrices)
    return view.restored(moved)


def shrunk_weight(weight: Any, compression: Compression, projections: Projections) -> jax.Array:
    """Pᵀ W, shaped like the compressed variable: what an optimizer sees of a weight that it wants to read."""
    view = projections.view(compression)
    matrices = view.full(weight)

    def shrink(i: Any) -> Any:
        drawn = projection(projections.of(view, i), matrices.shape[1], compression.rank)
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

    def full(self, weight: Any) -> jax.Array:
        width = math.prod(self.compression.shape[a] for a in self.compression.in_axes)
        return weight.transpose(self.order).reshape(math.prod(self.sizes), width, -1)

    def small(self, variable: Any) -> jax.Array:
        return variable.transpose(self.small_order).reshape(math.prod(self.sizes), self.compression.rank, -1)

    def restored(self, matrices: Any) -> jax.Array:
        shape = [self.compression.shape[a] for a in self.order]
        return matrices.reshape(shape).transpose(_inverse(self.order))

    def restored_small(self, matrices: Any) -> jax.Array:
        n_first = len(self.layers) + len(self.compression.in_axes)
        outputs = [self.compression.shape[a] for a in self.order[n_first:]]
        shape = (*self.sizes, self.compression.rank, *outputs)
        return matrices.reshape(shape).transpose(_inverse(self.small_order))


def _inverse(order: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(range(len(order)), key=order.__getitem__))
