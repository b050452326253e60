"""Work that is independent along some axes, done tile by tile: only one tile's intermediate values exist at a time."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_derivatives import SymbolicZero

from jaxremat.base import compat
from jaxremat.base.errors import ArgumentError
from jaxremat.chunk.sweep import linear_sweep
from jaxremat.chunk.tiling import Span, Tiling, Window, even_size
from jaxremat.trace.jaxpr import evaluate, shape_of


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


def map_chunks(fun: Callable, chunk_size: int, *, in_axes: int | tuple[int | None, ...] = 0, out_axes: int = 0):
    """Returns `fun` computed in chunks along one axis, on which its work must be independent.

    Like `jax.lax.map(..., batch_size=chunk_size)` over slices of that axis, but the slices are read where they lie,
    lengths need not be multiples of the chunk, and the derivative keeps nothing but the arguments: each chunk is
    computed again when its gradient is due. Forward mode, reverse mode and higher orders work.

    Args:
      fun: takes and returns arrays or trees of them; rows of its results depend on the same rows of its arguments only.
      chunk_size: at most so many entries along the axis at a time.
      in_axes: per positional argument the axis to cut, or None to pass it whole; one number for all arguments.
      out_axes: the axis of every result along which the chunks are laid.

    Returns:
      A function of the same positional arguments.
    """

    def chunked(*args):
        axes = in_axes if isinstance(in_axes, tuple) else (in_axes,) * len(args)
        if len(axes) != len(args):
            raise ArgumentError(f"in_axes has {len(axes)} entries for {len(args)} arguments")
        leaves = [(jnp.asarray(x), axis) for arg, axis in zip(args, axes) for x in jax.tree.leaves(arg)]
        lengths = {x.shape[axis] for x, axis in leaves if axis is not None}
        if len(lengths) != 1:
            raise ArgumentError(f"the arguments must agree in the length of the axis to cut, got {sorted(lengths)}")
        (length,) = lengths
        tiling = Tiling((length,), (even_size(length, chunk_size),))
        windows = [_window(x.ndim, axis) for x, axis in leaves]
        in_tree = jax.tree.structure(args)
        out_tree = None

        def flat(*blocks):
            nonlocal out_tree
            out, out_tree = jax.tree.flatten(fun(*jax.tree.unflatten(in_tree, blocks)))
            return out

        shapes = [jax.ShapeDtypeStruct(tiling.block_sizes(w, x.shape), x.dtype) for (x, _), w in zip(leaves, windows)]
        jaxpr, constants = compat.with_constants_as_inputs(jax.make_jaxpr(flat)(*shapes))
        ranks = [len(shape_of(v).shape) for v in jaxpr.outvars]
        task = TileMap(
            tile=lambda blocks, reads: evaluate(jaxpr, blocks),
            tiling=tiling,
            windows=(*(_window(jnp.ndim(c), None) for c in constants), *windows),
            out_windows=tuple(_window(rank, out_axes) for rank in ranks),
        )
        return jax.tree.unflatten(out_tree, map_tiles(task, [*constants, *(x for x, _ in leaves)]))

    return chunked


def map_tiles(task: TileMap, operands: Sequence[jax.Array]) -> list[jax.Array]:
    """The results of all tiles, put together; derivatives keep the operands only."""
    return _map(task, tuple(operands))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _map(task: TileMap, operands: tuple[jax.Array, ...]) -> list[jax.Array]:
    def step(results, place):
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
def _map_jvp(task: TileMap, primals, tangents):
    (operands,), (d_operands,) = primals, tangents
    results = _map(task, operands)
    moving = [i for i, t in enumerate(d_operands) if not isinstance(t, SymbolicZero)]
    smooth = [i for i, r in enumerate(results) if jnp.issubdtype(r.dtype, jnp.inexact)]

    def share(place, d_blocks):
        reads = task.tiling.reads(place)
        blocks = [task.tiling.block(x, w, reads) for x, w in zip(operands, task.windows)]

        def of(*moved):
            every = dict(enumerate(blocks)) | dict(zip(moving, moved))
            out = task.tile(list(every.values()), reads)
            return [out[i] for i in smooth]

        moved = [blocks[i] for i in moving]
        return jax.jvp(of, moved, [d.astype(x.dtype) for d, x in zip(d_blocks, moved)])[1]

    padded = task.padded_results(operands)
    sums = linear_sweep(
        task.tiling,
        share,
        [d_operands[i] for i in moving],
        [task.windows[i] for i in moving],
        [padded[i] for i in smooth],
        [task.out_windows[i] for i in smooth],
    )
    d_smooth = {i: task.tiling.trim(x, task.out_windows[i]) for i, x in zip(smooth, sums)}
    return results, [d_smooth.get(i, np.zeros(r.shape, jax.dtypes.float0)) for i, r in enumerate(results)]


def _window(rank: int, axis: int | None) -> Window:
    if axis is not None and not -rank <= axis < rank:
        raise ArgumentError(f"axis {axis} does not exist in an array of rank {rank}")
    at = None if axis is None else axis % rank
    return tuple(Span(0) if i == at else None for i in range(rank))
