"""An array over all iterations of a loop, read and written entry by entry."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxremat.base import compat


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Stack:
    """One entry per iteration.

    Attributes:
      array: the entries.
      axis: along which they lie.
    """

    array: jax.Array
    axis: int = dataclasses.field(default=0, metadata={"static": True})

    @property
    def in_order(self) -> jax.Array:
        """The entries along the first axis."""
        return jnp.moveaxis(self.array, self.axis, 0) if self.axis else self.array

    def filled(self, in_order: jax.Array) -> Stack:
        """The same with other entries, given along the first axis."""
        return Stack(jnp.moveaxis(in_order, 0, self.axis) if self.axis else in_order, self.axis)

    def at(self, index: Any) -> jax.Array:
        """An entry. Not `lax.dynamic_index_in_dim`: that is a call, with arithmetic for negative indices."""
        sizes = [1 if axis == self.axis else size for axis, size in enumerate(self.array.shape)]
        entry = lax.dynamic_slice(self.array, self._first(index), sizes, allow_negative_indices=False)
        return lax.squeeze(entry, (self.axis,))

    def put(self, value: jax.Array, index: Any) -> Stack:
        """The same with another entry, written into place."""
        entry = lax.expand_dims(value.astype(self.array.dtype), (self.axis,))
        first = self._first(index)
        return Stack(lax.dynamic_update_slice(self.array, entry, first, allow_negative_indices=False), self.axis)

    def _first(self, index: Any) -> list[Any]:
        """Where an entry begins."""
        return [index if axis == self.axis else 0 for axis in range(self.array.ndim)]


def stacks(arrays: Sequence[jax.Array], axes: Sequence[int] = ()) -> list[Stack]:
    """Stacks of arrays whose iterations lie along some axes, or along the first."""
    return [Stack(array, axis) for array, axis in zip(arrays, axes or (0,) * len(arrays), strict=True)]


def arrays_of(found: Sequence[Stack]) -> list[jax.Array]:
    return [stack.array for stack in found]


def zeros_like(array: jax.Array) -> jax.Array:
    """Zeros at the same place on a mesh."""
    return compat.zeros_of(jax.typeof(array))
