"""The tangent of tiled work: a loop over tiles that is linear, so that JAX's transpose of it is the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxremat.base import compat
from jaxremat.base.dtypes import promoted
from jaxremat.chunk.tiling.blocks import add_block, read_block
from jaxremat.chunk.tiling.tiles import Tiling, Window


def linear_tile_scan(
    tiling: Tiling,
    share: Callable[..., Any],
    tangents: Sequence[jax.Array],
    windows: Sequence[Window],
    results: Sequence[jax.ShapeDtypeStruct],
    out_windows: Sequence[Window],
) -> list[jax.Array]:
    """Adds up what every tile contributes.

    The tangents travel with the loop, in float32 or better, so that their cotangents are summed in place and without
    rounding at each tile. Nothing of a tile is kept: `share` is computed again when it is transposed.

    Args:
      tiling: the tiles.
      share: `share(place, blocks) -> blocks of the results`, linear in the blocks of the tangents.
      tangents, windows: what the blocks are cut from, and how.
      results, out_windows: shapes, padded, and how the results follow the box.

    Returns:
      The results, in arrays of padded lengths.
    """
    share = compat.linear_checkpoint(share)

    def step(state: Any, place: Any) -> Any:
        travelling, sums = state
        reads = tiling.reads(place)
        pairs = [
            read_block(x, tiling.starts(w, reads), tiling.block_sizes(w, x.shape)) for x, w in zip(travelling, windows)
        ]
        parts = share(place, [block for _, block in pairs])
        sums = [
            add_block(total, part.astype(total.dtype), tiling.starts(w, place))
            for total, part, w in zip(sums, parts, out_windows)
        ]
        return ([carried for carried, _ in pairs], sums), None

    travelling = [t.astype(promoted(t.dtype, jnp.float32)) for t in tangents]
    empty = [jnp.zeros(r.shape, r.dtype) for r in results]
    (_, sums), _ = lax.scan(step, (travelling, empty), tiling.places())
    return sums
