"""Cutting a box of work into tiles: static geometry, no arrays of the box's size."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxremat.base.errors import ArgumentError


class Span(NamedTuple):
    """An array axis that follows axis `axis` of the box, `offset` entries further on."""

    axis: int
    offset: int = 0


Window = tuple[Span | None, ...]
"""How an array follows the box: per array axis the Span it follows, or None where it is read whole."""


@dataclasses.dataclass(frozen=True)
class Tiling:
    """A box of `lengths`, cut into tiles of `sizes`; sizes need not divide lengths.

    The last tile along an axis starts early, so that every tile has the same shape: it *reads* from `length - size` and
    is *placed* at its nominal start in an array of `padded` lengths, from which `trim` takes each entry once.

    Attributes:
      lengths, sizes: entries per axis of the box and of one tile.
      band: (left, right): work exists only where `-left <= last axis - last but one axis <= right`; None is no bound.
        Tiles wholly outside are never visited.
    """

    lengths: tuple[int, ...]
    sizes: tuple[int, ...]
    band: tuple[int | None, int | None] = (None, None)

    @property
    def counts(self) -> tuple[int, ...]:
        return tuple(-(-length // size) for length, size in zip(self.lengths, self.sizes))

    @property
    def padded(self) -> tuple[int, ...]:
        return tuple(count * size for count, size in zip(self.counts, self.sizes))

    def overlaps(self, axis: int) -> bool:
        """Whether the last tile along `axis` reads entries that the tile before it has read."""
        return self.padded[axis] != self.lengths[axis]

    def places(self) -> np.ndarray:
        """int32 [tiles, rank]: nominal start of every tile that has work, in row-major order."""
        starts = (range(0, padded, size) for padded, size in zip(self.padded, self.sizes))
        places = np.array(list(itertools.product(*starts)), np.int32).reshape(-1, len(self.lengths))
        return places[self._has_work(places)]

    def _has_work(self, places: np.ndarray) -> np.ndarray:
        left, right = self.band
        if left is None and right is None:
            return np.ones(len(places), bool)
        reads = np.minimum(places, np.subtract(self.lengths, self.sizes, dtype=np.int32))
        query, key = reads[:, -2], reads[:, -1]
        work = np.ones(len(places), bool)
        if right is not None:
            work &= key - (query + self.sizes[-2] - 1) <= right
        if left is not None:
            work &= key + self.sizes[-1] - 1 - query >= -left
        return work

    def reads(self, place: jax.Array) -> list[jax.Array]:
        """Where a tile reads, per axis, from its place [rank]."""
        last = [length - size for length, size in zip(self.lengths, self.sizes)]
        return [jnp.minimum(place[i], last[i]) if self.overlaps(i) else place[i] for i in range(len(last))]

    def positions(self, reads: list[jax.Array], axis: int) -> jax.Array:
        """int32 [size]: which entries of the box a tile reads along `axis`."""
        return reads[axis] + np.arange(self.sizes[axis], dtype=np.int32)

    def starts(self, window: Window, origin: Any) -> list[Any]:
        """Where an array's block starts, when the tile starts at `origin` (reads or place)."""
        zero = np.zeros((), np.int32)
        return [zero if span is None else origin[span.axis] + np.int32(span.offset) for span in window]

    def block_sizes(self, window: Window, shape: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(n if span is None else self.sizes[span.axis] for span, n in zip(window, shape))

    def padded_shape(self, block_shape: tuple[int, ...], window: Window) -> tuple[int, ...]:
        """The shape of the array into which blocks of this shape are placed."""
        return tuple(n if span is None else self.padded[span.axis] for span, n in zip(window, block_shape))

    def block(self, array: jax.Array, window: Window, reads: list[jax.Array]) -> jax.Array:
        """The part of an array that a tile reads."""
        if all(span is None for span in window):
            return array
        sizes = self.block_sizes(window, array.shape)
        return lax.dynamic_slice(array, self.starts(window, reads), sizes, allow_negative_indices=False)

    def trim(self, array: jax.Array, window: Window) -> jax.Array:
        """From an array of `padded` lengths, filled place by place, the array of `lengths`."""
        for i, span in enumerate(window):
            if span is not None and self.overlaps(span.axis):
                size, length = self.sizes[span.axis], self.lengths[span.axis]
                first = self.padded[span.axis] - size
                kept = lax.slice_in_dim(array, 0, first, axis=i)
                rest = lax.slice_in_dim(array, first + size - (length - first), first + size, axis=i)
                array = lax.concatenate([kept, rest], i)
        return array


def attention_tiling(
    lengths: tuple[int, ...],
    entries: int,
    query_chunk_size: int | None = None,
    key_chunk_size: int | None = None,
    band: tuple[int | None, int | None] = (None, None),
) -> Tiling:
    """Cuts [*others, queries, keys]; entries of the other axes join a tile while it stays small.

    Args:
      lengths: of the box.
      entries: about so many scores in a tile; `Backend.scores_per_tile` of the target suits it.
      query_chunk_size, key_chunk_size: at most so many in a tile; None chooses at most 1024 and 4096.
      band: see `Tiling`.
    """
    *others, queries, keys = lengths
    query_size = even_size(queries, min(1024, entries) if query_chunk_size is None else query_chunk_size)
    room_for_keys = max(1, min(4096, entries // query_size))
    key_size = even_size(keys, room_for_keys if key_chunk_size is None else key_chunk_size)
    sizes, room = [key_size, query_size], entries // (query_size * key_size)
    for length in reversed(others):
        sizes.append(dividing_size(length, room))
        room //= max(1, length)
    return Tiling(tuple(lengths), tuple(reversed(sizes)), band)


def even_size(length: int, limit: int) -> int:
    """The smallest tile that covers `length` in as few tiles of at most `limit` as possible."""
    if limit < 1:
        raise ArgumentError(f"a chunk size must be at least 1, got {limit}")
    return max(1, math.ceil(length / max(1, math.ceil(length / limit))))


def dividing_size(length: int, limit: int) -> int:
    """The largest divisor of `length` that is at most `limit` (at least 1)."""
    return max(n for n in range(1, max(1, min(length, limit)) + 1) if length % n == 0) if length else 1
