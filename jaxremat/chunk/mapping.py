"""A function of your own, one chunk of its arguments at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxremat.base import compat
from jaxremat.base.errors import ArgumentError
from jaxremat.chunk.tiling.tile_map import TileMap, map_tiles
from jaxremat.chunk.tiling.tiles import Span, Tiling, Window, even_size
from jaxremat.trace.jaxpr import evaluate, shape_of


def map_chunks(
    fun: Callable[..., Any], chunk_size: int, *, in_axes: int | tuple[int | None, ...] = 0, out_axes: int = 0
) -> Callable[..., Any]:
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
      A function of the same positional arguments. It raises ArgumentError where these have no such axis, or disagree in
      its length.
    """

    def chunked(*args: Any) -> Any:
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

        def flat(*blocks: Any) -> Any:
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


def _window(rank: int, axis: int | None) -> Window:
    if axis is not None and not -rank <= axis < rank:
        raise ArgumentError(f"axis {axis} does not exist in an array of rank {rank}")
    at = None if axis is None else axis % rank
    return tuple(Span(0) if i == at else None for i in range(rank))
