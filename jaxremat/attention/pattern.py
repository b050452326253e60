"""Finding softmax attention in a jaxpr, however it is written, and what replaces it.

The anchor is a matrix product, one operand of which is exp(s) / sum(exp(s)) along the contracted axis, seen through
casts, transposes and reshapes. Nothing is assumed about the scores s: whatever elementwise equations, masks, biases
and products make them are cut out of the program and run tile by tile (`jaxremat.chunk.tiling.subgraph`).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxremat.base import compat
from jaxremat.base.compat import Eqn, Jaxpr, Literal, Var
from jaxremat.base.dtypes import promoted
from jaxremat.chunk.rewriting.finding import Finding, producers_of, readers_of
from jaxremat.chunk.tiling.softmax import Scores, softmax_mean
from jaxremat.chunk.tiling.subgraph import TiledSubgraph, operand_windows, tiled_subgraph
from jaxremat.chunk.tiling.tiles import Span, Tiling, Window, attention_tiling
from jaxremat.trace import jaxpr as jaxprs
from jaxremat.trace.jaxpr import shape_of, size_bytes, vars_of
from jaxremat.trace.primitives import ALIASING, OWN_RULES

KIND = "softmax attention"
_CARRIERS = ALIASING - {"stop_gradient"} | {"convert_element_type", "transpose", "broadcast_in_dim"}
_SHIFT = _CARRIERS | {"stop_gradient", "max", "select_n"}


@dataclasses.dataclass(frozen=True, eq=False)
class _Softmax:
    """exp(scores) / sum(exp(scores)) as found: the scores, how they follow the box, and the equations around them."""

    scores: Var
    window: Window
    eqns: list[Eqn]


@dataclasses.dataclass(frozen=True)
class _SubgraphTile:
    subgraph: TiledSubgraph
    tiling: Tiling
    axes: tuple[int, ...]  # of the scores as the program has them, in the order of the box; unit axes first

    def __call__(self, blocks: Any, reads: Any) -> jax.Array:
        (scores,) = self.subgraph.compute(blocks, reads, self.tiling)
        return jnp.transpose(scores, self.axes).reshape(self.tiling.sizes)


class AttentionFinder:
    """Finds attention in one jaxpr; about `entries` scores in a tile, chunk sizes as in `dot_product_attention`."""

    def __init__(self, entries: int, query_chunk_size: int | None = None, key_chunk_size: int | None = None) -> None:
        self.entries, self.query_chunk_size, self.key_chunk_size = entries, query_chunk_size, key_chunk_size

    def body_of(self, eqn: Eqn) -> Jaxpr | None:
        """Calls, and softmax, whose own derivative the replacement has no use for."""
        body = jaxprs.called_body(eqn)
        is_softmax = compat.primitive_name(eqn) in OWN_RULES and str(eqn.params.get("name", "")).endswith("softmax")
        return jaxprs.computed_body(eqn) if is_softmax else body

    def __call__(self, jaxpr: Jaxpr) -> list[Finding]:
        made_by, readers = producers_of(jaxpr), readers_of(jaxpr)
        found = []
        for eqn in jaxpr.eqns:
            if eqn.primitive.name == "dot_general":
                found += [f for side in (0, 1) if (f := self._match(eqn, side, jaxpr, made_by, readers)) is not None]
        return found

    def _match(self, mix: Eqn, side: int, jaxpr: Jaxpr, made_by: Any, readers: Any) -> Finding | None:
        """What the product `mix` is, if its operand `side` is a softmax; None if it is not."""
        contract, batch = mix.params["dimension_numbers"]
        weights = mix.invars[side]
        if len(contract[0]) != 1 or isinstance(weights, Literal):
            return None
        order = _box_order(shape_of(weights).shape, contract[side][0], batch[side])
        box = tuple(shape_of(weights).shape[axis] for axis in order)
        window = _inverse_window(order, shape_of(weights).shape)
        softmax = _trace_softmax(weights, window, len(box) - 1, made_by)
        if softmax is None:
            return None
        finding = Finding(KIND, compat.source_line(mix), shape_of(softmax.scores).shape, size_bytes(softmax.scores))
        if len(box) - len(batch[side]) < 2:
            return dataclasses.replace(finding, reason="it has no axis of queries")
        tiling = attention_tiling(box, self.entries, self.query_chunk_size, self.key_chunk_size)
        if tiling.sizes == tiling.lengths:
            return dataclasses.replace(finding, reason="the scores fit in one tile")
        cut, axes = _score_subgraph(softmax, len(batch[side]), box, made_by)
        if not any(eqn.primitive.name == "dot_general" for eqn in cut.eqns):
            return dataclasses.replace(finding, reason="the scores are not a product that tiles can be cut from")
        elsewhere = _read_elsewhere({*map(id, [*cut.eqns, *softmax.eqns, mix])}, mix, jaxpr, readers)
        if elsewhere:
            return dataclasses.replace(finding, reason=f"scores or weights are also read {elsewhere}")
        return dataclasses.replace(
            finding,
            reads=(*(var for var, _ in cut.sources), *_variable(mix.invars[1 - side])),
            gives=(mix.outvars[0],),
            emit=lambda values: [_emit(mix, side, order, _SubgraphTile(cut, tiling, axes), values)],
        )


def _box_order(shape: Any, key_axis: int, batch: Any) -> list[int]:
    """Axes of the weights as the box has them: batch, other rows, queries (the longest row axis), keys."""
    rows = [axis for axis in range(len(shape)) if axis != key_axis and axis not in batch]
    rows.sort(key=lambda axis: shape[axis])
    return [*batch, *rows, key_axis]


def _inverse_window(order: Any, shape: Any) -> Window:
    """How the weights follow the box; an axis of length 1 follows nothing, so that reshapes may drop it."""
    return tuple(None if n == 1 else Span(order.index(axis)) for axis, n in enumerate(shape))


def _trace_softmax(weights: Var, window: Window, key: int, made_by: Any) -> _Softmax | None:
    """Follows the weights up to the scores; None where they are not a softmax over box axis `key`."""
    var, window, eqns = _through_carriers(weights, window, made_by)
    divide = made_by.get(var)
    if divide is None or divide.primitive.name != "div" or Span(key) not in window:
        return None
    axis = window.index(Span(key))
    exp, total = divide.invars
    exponential = _maker(exp, made_by)
    if exponential is None or exponential.primitive.name != "exp" or shape_of(exp).shape != shape_of(var).shape:
        return None
    summed = _reduced(total, "reduce_sum", axis, exp, made_by, _CARRIERS)
    if summed is None:
        return None
    eqns += [divide, exponential, *summed]
    scores = exponential.invars[0]
    if isinstance(scores, Literal):
        return None
    shift = made_by.get(scores)
    if shift is not None and shift.primitive.name == "sub" and not isinstance(shift.invars[0], Literal):
        peak = _reduced(shift.invars[1], "reduce_max", axis, shift.invars[0], made_by, _SHIFT)
        if peak is not None:
            eqns += [shift, *peak]
            scores = shift.invars[0]
    return _Softmax(scores, window, eqns)


def _through_carriers(var: Var, window: Window, made_by: Any) -> tuple[Var, Window, list[Eqn]]:
    eqns = []
    while (eqn := made_by.get(var)) is not None and compat.primitive_name(eqn) in _CARRIERS:
        windows = operand_windows(eqn, window)
        lost = windows is None or {s for s in windows[0] if s} != {s for s in window if s}
        if windows is None or lost or isinstance(eqn.invars[0], Literal):
            break
        var, window = eqn.invars[0], windows[0]
        eqns.append(eqn)
    return var, window, eqns


def _reduced(atom: Any, primitive: str, axis: int, of: Var, made_by: Any, through: Any) -> list[Eqn] | None:
    """The equations that make `atom` the reduction of `of` along `axis`, broadcast back; None if it is not."""
    follows = tuple(Span(i) if n != 1 else None for i, n in enumerate(shape_of(of).shape))
    if len(shape_of(atom).shape) != len(follows):
        return None
    window = tuple(None if n == 1 else span for n, span in zip(shape_of(atom).shape, follows))
    eqns: list[Eqn] = []
    while (eqn := _maker(atom, made_by)) is not None:
        eqns.append(eqn)
        name = compat.primitive_name(eqn)
        if name == primitive:
            straight = window == follows[:axis] + follows[axis + 1 :]
            along = tuple(int(a) for a in eqn.params["axes"]) == (axis,)
            return eqns if straight and along and eqn.invars[0] is of else None
        windows = operand_windows(eqn, window) if name in through else None
        if windows is None or (name not in _CARRIERS and Span(axis) in window):
            return None
        side = next((i for i, a in enumerate(eqn.invars) if _reaches(a, primitive, of, made_by)), None)
        if side is None:
            return None
        atom, window = eqn.invars[side], windows[side]
    return None


def _maker(atom: Any, made_by: Any) -> Eqn | None:
    return None if isinstance(atom, Literal) else made_by.get(atom)


def _reaches(atom: Any, primitive: str, of: Var, made_by: Any, depth: int = 8) -> bool:
    """Whether `atom` is made, in a few equations, from the reduction of `of`."""
    eqn = _maker(atom, made_by)
    if eqn is None or depth == 0:
        return False
    if eqn.primitive.name == primitive:
        return eqn.invars[0] is of
    return any(_reaches(a, primitive, of, made_by, depth - 1) for a in eqn.invars)


def _score_subgraph(
    softmax: _Softmax, batch_rank: int, box: Any, made_by: Any
) -> tuple[TiledSubgraph, tuple[int, ...]]:
    """The equations that make the scores, cut at what does not span both queries and keys."""
    key, rows = len(box) - 1, set(range(batch_rank, len(box) - 1))

    def inside(var: Var, window: Window) -> bool:
        axes = {span.axis for span in window if span}
        return key in axes and bool(axes & rows)

    window = softmax.window
    axes = [i for axis in range(len(box)) for i, span in enumerate(window) if span == Span(axis)]
    units = [i for i, span in enumerate(window) if span is None]
    return tiled_subgraph(made_by, [(softmax.scores, window)], inside), (*units, *axes)


def _read_elsewhere(inside: set[int], mix: Eqn, jaxpr: Jaxpr, readers: Any) -> str:
    """Where a value that depends on a product of the subgraph is read by an equation outside; empty if nowhere."""
    dependent: set[Var] = set()
    for eqn in jaxpr.eqns:
        reads_product = eqn.primitive.name == "dot_general" or not dependent.isdisjoint(vars_of(eqn.invars))
        if id(eqn) in inside and eqn is not mix and reads_product:
            dependent.update(eqn.outvars)
    for var in dependent:
        for reader in readers.get(var, ()):
            if reader is None:
                return "as a result of the function"
            if id(reader) not in inside:
                return f"by {reader.primitive.name} at {compat.source_line(reader)}"
    return ""


def _variable(atom: Any) -> tuple[Var, ...]:
    return () if isinstance(atom, Literal) else (atom,)


def _emit(mix: Eqn, side: int, order: list[int], tile: _SubgraphTile, values: list[Any]) -> jax.Array:
    """The product of weights and values in the layout and dtype that the program expects."""
    contract, batch = mix.params["dimension_numbers"]
    *operands, value = values
    other = 1 - side
    depth = [i for i in range(value.ndim) if i not in (*batch[other], *contract[other])]
    value = jnp.transpose(value, (*batch[other], *contract[other], *depth))
    rank = len(batch[other])
    depth_shape = value.shape[rank + 1 :]
    value = value.reshape(*value.shape[: rank + 1], math.prod(depth_shape))
    value = value.astype(promoted(value.dtype, shape_of(mix.invars[side]).dtype))
    scores = Scores(
        tile=tile,
        tiling=tile.tiling,
        windows=tuple(window for _, window in tile.subgraph.sources),
        batch_rank=rank,
        precision=mix.params["precision"],
        out_dtype=shape_of(mix.outvars[0]).dtype,
    )
    with compat.at_position_of(mix):
        out, _ = softmax_mean(scores, operands, value)
    rows = order[rank:-1]
    out = out.reshape(*out.shape[:-1], *depth_shape)
    out = jnp.moveaxis(out, range(rank, rank + len(rows)), [rank + sorted(rows).index(axis) for axis in rows])
    if side == 1:
        out = jnp.moveaxis(out, range(rank, rank + len(rows)), range(out.ndim - len(rows), out.ndim))
    return out
