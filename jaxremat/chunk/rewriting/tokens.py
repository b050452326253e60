"""Subgraphs that are independent along tokens, run some tokens at a time."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax

from jaxremat.base import compat
from jaxremat.base.compat import Eqn
from jaxremat.chunk.tiling.subgraph import TiledSubgraph
from jaxremat.chunk.tiling.tile_map import TileMap, map_tiles, scan_tiles
from jaxremat.chunk.tiling.tiles import Span, Tiling, Window, dividing_size, even_size

_FEWEST_TOKENS = 128
"""Rows of a product below which matrix units idle: the side of a TPU's, and of a tile of GPU kernels."""


@dataclasses.dataclass(frozen=True)
class TokenLoop:
    """How a box of tokens is cut, and what runs the tiles.

    Attributes:
      cut: the tiling of a box of such lengths into tiles of about so many tokens.
      run: the results of all tiles.
    """

    cut: Callable[[tuple[int, ...], int], Tiling]
    run: Callable[[TileMap, Sequence[jax.Array]], list[jax.Array]]

    def emit(self, product: Eqn, cut: TiledSubgraph, tiling: Tiling, values: Sequence[Any]) -> list[Any]:
        """The outputs of a subgraph from the values of its sources, at the place of its main product."""
        windows, out_windows = (tuple(w for _, w in needs) for needs in (cut.sources, cut.outputs))
        with compat.at_position_of(product):
            return self.run(TileMap(_SubgraphTiles(cut, tiling), tiling, windows, out_windows), values)


@dataclasses.dataclass(frozen=True)
class _SubgraphTiles:
    subgraph: TiledSubgraph
    tiling: Tiling

    def __call__(self, blocks: Any, reads: Any) -> Any:
        return self.subgraph.compute(blocks, reads, self.tiling)


def tokens_per_tile(entries: int, width: int) -> int:
    """How many tokens of `width` values make about so many entries; not fewer than keep the product fast."""
    return max(_FEWEST_TOKENS, entries // width)


def token_window(shape: Sequence[int]) -> Window:
    """How a value per token follows the box of tokens, whose axes are those longer than 1."""
    axes = iter(range(len(shape)))
    return tuple(None if n == 1 else Span(next(axes)) for n in shape)


def _rows(lengths: tuple[int, ...], tokens: int) -> Tiling:
    """Cut along the last axes, whole rows where they fit."""
    sizes = [even_size(lengths[-1], tokens)]
    room = tokens // sizes[0]
    for length in reversed(lengths[:-1]):
        sizes.append(dividing_size(length, room))
        room //= length
    return Tiling(lengths, tuple(reversed(sizes)))


def _slices(lengths: tuple[int, ...], tokens: int) -> Tiling:
    """Cut along the longest axis only."""
    axis = lengths.index(max(lengths))
    size = even_size(lengths[axis], max(1, tokens * lengths[axis] // math.prod(lengths)))
    return Tiling(lengths, tuple(size if i == axis else n for i, n in enumerate(lengths)))


KEEPING_NOTHING = TokenLoop(_rows, map_tiles)
"""Tiles whose derivative computes them again: nothing to decide."""

PLANNED = TokenLoop(_slices, scan_tiles)
"""A loop like any other: a planner decides what each tile keeps."""
