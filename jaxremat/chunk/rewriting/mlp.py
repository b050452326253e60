"""Finding token-wise MLPs in a jaxpr: a product with a matrix, up to a wider axis, and another one down again.

The anchor is the product that contracts the wider axis; the subgraph is everything above it that is as wide: gates,
activations, biases, casts. Its equations run some tokens at a time.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

from jaxremat.base import compat
from jaxremat.base.compat import Eqn, Jaxpr, Literal, Var
from jaxremat.chunk.rewriting.finding import Finding, producers_of, readers_of
from jaxremat.chunk.rewriting.tokens import KEEPING_NOTHING, TokenLoop, tokens_per_tile
from jaxremat.chunk.tiling.subgraph import TiledSubgraph, tiled_subgraph
from jaxremat.chunk.tiling.tiles import Span, Window
from jaxremat.trace.jaxpr import called_body, shape_of, size_bytes

KIND = "token-wise MLP"


class MlpFinder:
    """Finds token-wise MLPs in one jaxpr.

    Args:
      entries: about so many hidden values at a time.
      loop: what runs the chunks.
    """

    def __init__(self, entries: int, loop: TokenLoop = KEEPING_NOTHING) -> None:
        self.entries, self.loop = entries, loop

    def body_of(self, eqn: Eqn) -> Jaxpr | None:
        return called_body(eqn)

    def __call__(self, jaxpr: Jaxpr) -> list[Finding]:
        made_by, readers = producers_of(jaxpr), readers_of(jaxpr)
        ends = [(eqn, side) for eqn in jaxpr.eqns for side in (0, 1) if _is_matrix_product(eqn, matrix=1 - side)]
        return [f for down, side in ends if (f := self._match(down, side, made_by, readers)) is not None]

    def _match(self, down: Eqn, side: int, made_by: Any, readers: Any) -> Finding | None:
        """The MLP that ends with a product whose operand `side` is hidden; None if it is not the end of one."""
        hidden, out = down.invars[side], down.outvars[0]
        if isinstance(hidden, Literal) or hidden not in made_by or _size(hidden) <= _size(out):
            return None
        window, box = _token_axes(shape_of(out).shape, len(shape_of(out).shape) - 1 if side == 0 else 0)
        width = _size(hidden) // max(1, math.prod(box))
        tiling = self.loop.cut(box, tokens_per_tile(self.entries, width)) if box else None
        if tiling is None or tiling.sizes == tiling.lengths:
            return None
        cut = tiled_subgraph(
            made_by, [(out, window)], lambda var, w: any(w) and (var is out or _size(var) >= _size(hidden))
        )
        if not _is_mlp(cut, down, _size(hidden), readers):
            return None
        return Finding(
            KIND,
            compat.source_line(down),
            shape_of(hidden).shape,
            size_bytes(hidden),
            reads=tuple(var for var, _ in cut.sources),
            gives=(out,),
            emit=functools.partial(self.loop.emit, down, cut, tiling),
        )


def _is_mlp(cut: TiledSubgraph, down: Eqn, wide: int, readers: Any) -> bool:
    """Whether a subgraph holds a product with a matrix, no other product, and nothing wide from or for others."""
    products = [eqn for eqn in cut.eqns if eqn.primitive.name == "dot_general" and eqn is not down]
    inside = {id(eqn) for eqn in cut.eqns}
    made = [var for eqn in cut.eqns if eqn is not down for var in eqn.outvars]
    return (
        bool(products)
        and all(any(_is_matrix_product(eqn, matrix) for matrix in (0, 1)) for eqn in products)
        and all(_size(var) < wide for var, window in cut.sources if any(window))
        and all(id(reader) in inside for var in made for reader in readers.get(var, ()))
    )


def _is_matrix_product(eqn: Eqn, matrix: int) -> bool:
    """Whether an equation is a product whose operand `matrix` is one matrix for all rows of the other operand."""
    if eqn.primitive.name != "dot_general":
        return False
    contract, batch = eqn.params["dimension_numbers"]
    return not batch[0] and len(contract[0]) == 1 and len(shape_of(eqn.invars[matrix]).shape) == 2


def _token_axes(shape: Sequence[int], feature: int) -> tuple[Window, tuple[int, ...]]:
    """How a product follows the box of its tokens, and the box; axes of length 1 follow nothing."""
    tokens = [i for i, n in enumerate(shape) if i != feature and n != 1]
    window = tuple(Span(tokens.index(i)) if i in tokens else None for i in range(len(shape)))
    return window, tuple(shape[i] for i in tokens)


def _size(var: Var | Literal) -> int:
    return math.prod(shape_of(var).shape)
