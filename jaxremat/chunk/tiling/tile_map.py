"""Work that is independent along some axes, done tile by tile: only one tile's intermediate values exist at a time."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_derivatives import SymbolicZero

from jaxremat.base.dtypes import promoted
from jaxremat.chunk.tiling.tile_scan import linear_tile_scan
from jaxremat.chunk.tiling.tiles import Tiling, Window


@dataclasses.dataclass(frozen=True)
class TileMap:
    """What one tile computes: `tile(blocks, reads) -> blocks of the results`, pure; static and hashable.

    Attributes:
      tile: the computation.
      tiling: the cut of the box.
      windows, out_windows: one per operand and per result; every axis of the box appears in every result.
    """

    tile: Callable[[Sequence[jax.Array], list[jax.Array]], Sequence[jax.Array]]
    tiling: Tiling
    windows: tuple[Window, ...]
    out_windows: tuple[Window, ...]

    def at(self, operands: Sequence[jax.Array], place: jax.Array) -> Sequence[jax.Array]:
        reads = self.tiling.reads(place)
        return self.tile([self.tiling.block(x, w, reads) for x, w in zip(operands, self.windows)], reads)

    def padded_results(self, operands: Sequence[jax.Array]) -> list[jax.ShapeDtypeStruct]:
        place = jax.ShapeDtypeStruct((len(self.tiling.lengths),), jnp.int32)
        blocks = jax.eval_shape(self.at, list(operands), place)
        return [
            jax.ShapeDtypeStruct(self.tiling.padded_shape(b.shape, w), b.dtype)
            for b, w in zip(blocks, self.out_windows)
        ]


def map_tiles(task: TileMap, operands: Sequence[jax.Array]) -> list[jax.Array]:
    """The results of all tiles, put together; derivatives keep the operands only."""
    return _map(task, tuple(operands))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _map(task: TileMap, operands: tuple[jax.Array, ...]) -> list[jax.Array]:
    def step(results: Any, place: Any) -> Any:
        blocks = task.at(operands, place)
        results = [
            lax.dynamic_update_slice(x, block, task.tiling.starts(w, place), allow_negative_indices=False)
            for x, block, w in zip(results, blocks, task.out_windows)
        ]
        return results, None

    empty = [jnp.zeros(r.shape, r.dtype) for r in task.padded_results(operands)]
    results, _ = lax.scan(step, empty, task.tiling.places())
    return [task.tiling.trim(x, w) for x, w in zip(results, task.out_windows)]


@functools.partial(_map.defjvp, symbolic_zeros=True)
def _map_jvp(task: TileMap, primals: Any, tangents: Any) -> Any:
    (operands,), (d_operands,) = primals, tangents
    results = _map(task, operands)
    moving = [i for i, t in enumerate(d_operands) if not isinstance(t, SymbolicZero)]
    smooth = [i for i, r in enumerate(results) if jnp.issubdtype(r.dtype, jnp.inexact)]

    def share(place: Any, d_blocks: Any) -> Any:
        reads = task.tiling.reads(place)
        blocks = [task.tiling.block(x, w, reads) for x, w in zip(operands, task.windows)]

        def of(*moved: Any) -> Any:
            every = dict(enumerate(blocks)) | dict(zip(moving, moved))
            out = task.tile(list(every.values()), reads)
            return [out[i] for i in smooth]

        moved = [blocks[i] for i in moving]
        return jax.jvp(of, moved, [d.astype(x.dtype) for d, x in zip(d_blocks, moved)])[1]

    padded = task.padded_results(operands)
    sums = linear_tile_scan(
        task.tiling,
        share,
        [d_operands[i] for i in moving],
        [task.windows[i] for i in moving],
        [padded[i] for i in smooth],
        [task.out_windows[i] for i in smooth],
    )
    d_smooth = {i: task.tiling.trim(x, task.out_windows[i]) for i, x in zip(smooth, sums)}
    return results, [d_smooth.get(i, np.zeros(r.shape, jax.dtypes.float0)) for i, r in enumerate(results)]


def scan_tiles(task: TileMap, operands: Sequence[jax.Array]) -> list[jax.Array]:
    """As `map_tiles`, as a scan that JAX differentiates, so that a planner decides what each tile keeps.

    The box is cut along one axis. What follows it is scanned over; the rest is read whole by every tile, and travels in
    float32 or better, so that its gradient is summed without rounding at each tile.
    """
    tiling, axis = task.tiling, _cut_axis(task.tiling)
    follows = [_place_in(window, axis) is not None for window in task.windows]
    stacked = [_stacked(tiling, x, w, axis) for x, w, moves in zip(operands, task.windows, follows) if moves]
    whole = [_widened(x) for x, moves in zip(operands, follows) if not moves]

    def step(_: Any, given: Any) -> Any:
        start, slices = given
        reads = [start if i == axis else jnp.int32(0) for i in range(len(tiling.lengths))]
        moving, fixed = iter(slices), iter(whole)
        blocks = [
            next(moving) if moves else tiling.block(next(fixed).astype(x.dtype), w, reads)
            for x, w, moves in zip(operands, task.windows, follows)
        ]
        return None, task.tile(blocks, reads)

    last = tiling.lengths[axis] - tiling.sizes[axis]
    starts = np.minimum(np.arange(tiling.counts[axis], dtype=np.int32) * tiling.sizes[axis], last).astype(np.int32)
    _, results = lax.scan(step, None, (starts, stacked))
    return [_together(tiling, x, w, axis) for x, w in zip(results, task.out_windows)]


def _cut_axis(tiling: Tiling) -> int:
    (axis,) = (i for i, (length, size) in enumerate(zip(tiling.lengths, tiling.sizes)) if length != size)
    return axis


def _place_in(window: Window, axis: int) -> int | None:
    """Which axis of an array follows an axis of the box."""
    return next((i for i, span in enumerate(window) if span is not None and span.axis == axis), None)


def _stacked(tiling: Tiling, array: jax.Array, window: Window, axis: int) -> jax.Array:
    """[tiles, ...]: the blocks of an array; the last one starts early where sizes do not divide lengths."""
    for i, span in enumerate(window):
        if span is not None:
            array = lax.slice_in_dim(array, span.offset, span.offset + tiling.lengths[span.axis], axis=i)
    at, size, length = _place_in(window, axis), tiling.sizes[axis], tiling.lengths[axis]
    assert at is not None
    if tiling.overlaps(axis):
        before = lax.slice_in_dim(array, 0, tiling.padded[axis] - size, axis=at)
        array = lax.concatenate([before, lax.slice_in_dim(array, length - size, length, axis=at)], at)
    blocks = array.reshape(*array.shape[:at], tiling.counts[axis], size, *array.shape[at + 1 :])
    return jnp.moveaxis(blocks, at, 0)


def _together(tiling: Tiling, blocks: jax.Array, window: Window, axis: int) -> jax.Array:
    """The array whose blocks are stacked along the first axis."""
    at = _place_in(window, axis)
    assert at is not None
    blocks = jnp.moveaxis(blocks, 0, at)
    return tiling.trim(blocks.reshape(*blocks.shape[:at], -1, *blocks.shape[at + 2 :]), window)


def _widened(x: jax.Array) -> jax.Array:
    return x.astype(promoted(x.dtype, jnp.float32)) if jnp.issubdtype(x.dtype, jnp.floating) else x
