"""What is computed of a loop's results entry by entry, inside the loop, so that the results need not be stacked.

A recurrent network returns what it computed at each step, and a loss compares that with a target, step by step, and
sums. Differentiated as it is written, the program holds the stacked results, and stacked cotangents beside them. With
the comparison inside, an iteration adds to a sum, and its backward makes the cotangent of its own entry.

Only equations that treat each entry by itself move: those that `chunk.tiling.subgraph` can cut along the iterations,
and sums over them. Nothing is computed twice; sums are added up in the order of the iterations.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence, Set
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxremat.base import compat
from jaxremat.base.compat import Eqn, Jaxpr, Var
from jaxremat.chunk.rewriting import program
from jaxremat.chunk.rewriting.finding import Finding, producers_of, readers_of
from jaxremat.chunk.tiling.subgraph import TiledSubgraph, operand_windows, tiled_subgraph
from jaxremat.chunk.tiling.tiles import Span, Tiling, Window
from jaxremat.trace.jaxpr import dtype_of, evaluate, inline_calls, shape_of, size_bytes, value_of, vars_of
from jaxremat.trace.joint import Primal
from jaxremat.trace.primitives import CHEAP

Readers = dict[Var, list[Eqn | None]]

KIND = "what is computed of a loop's results"

_LIGHT = CHEAP | {"broadcast_in_dim", "iota", "reshape", "squeeze", "transpose"}
"""What is made again inside, an entry at a time, rather than read from an array over all iterations."""

_WIDE = 4
"""Bytes of the narrowest numbers that are added up one after another: those of float32."""


def with_epilogues_inside(primal: Primal) -> Primal:
    """The program with everything inside its loops that can be there; the program itself where nothing can."""
    jaxpr = primal.jaxpr
    while program.find(jaxpr, EpilogueFinder()):
        jaxpr = _moved(jaxpr)
    if jaxpr is primal.jaxpr:
        return primal
    written = primal.written or primal
    return dataclasses.replace(primal, jaxpr=jaxpr, raw=None, written=written, epilogues_after=primal.given)


def _moved(jaxpr: Jaxpr) -> Jaxpr:
    run = functools.partial(program.run, jaxpr, finder=EpilogueFinder())
    return inline_calls(jax.make_jaxpr(lambda *xs: run(xs))(*map(shape_of, jaxpr.invars)))


class EpilogueFinder:
    """Finds the first scan of a jaxpr of whose results less has to be stacked when more is computed inside."""

    def body_of(self, eqn: Eqn) -> Jaxpr | None:
        return None

    def __call__(self, jaxpr: Jaxpr) -> list[Finding]:
        scans = (eqn for eqn in jaxpr.eqns if eqn.primitive.name == "scan" and not eqn.effects)
        found = (_match(scan, jaxpr) for scan in scans if scan.params["length"] > 1)
        return next(([finding] for finding in found if finding is not None), [])


def _match(scan: Eqn, jaxpr: Jaxpr) -> Finding | None:
    readers = readers_of(jaxpr)
    stacked = tuple(v for v in _results(scan) if v in readers)
    stacked_bytes = sum(map(size_bytes, stacked))
    epilogue = _closed(scan, jaxpr, stacked, stacked_bytes, readers)
    if sum(map(size_bytes, epilogue.escaping)) >= stacked_bytes:
        return None
    cut = epilogue.cut(producers_of(jaxpr))
    sources = dict.fromkeys(v for v, _ in cut.sources if v not in stacked)
    return Finding(
        KIND,
        compat.source_line(scan),
        shape_of(stacked[0]).shape,
        max(map(size_bytes, stacked)),
        reads=tuple(dict.fromkeys((*vars_of(scan.invars), *sources))),
        gives=(*_final(scan), *(eqn.outvars[0] for eqn in epilogue.sums), *epilogue.escaping),
        emit=functools.partial(_emit, epilogue, cut),
    )


@dataclasses.dataclass(frozen=True, eq=False)
class _Epilogue:
    """What is computed of the results of a scan.

    Attributes:
      scan: the loop.
      axes: along which axis entries lie, of its results and of all that is computed of them entry by entry.
      sums: equations that add up such entries.
      escaping: what is read by others, and stays stacked.
    """

    scan: Eqn
    axes: dict[Var, int]
    sums: tuple[Eqn, ...] = ()
    escaping: tuple[Var, ...] = ()

    def window(self, var: Var) -> Window:
        return _entry(len(shape_of(var).shape), self.axes[var])

    def cut(self, made_by: dict[Var, Eqn]) -> TiledSubgraph:
        """The equations that move, from what escapes and what is added up to their sources."""
        needs = dict.fromkeys([*map(_summed, self.sums), *self.escaping])

        def inside(var: Var, window: Window) -> bool:
            return any(window) and (var in self.axes or compat.primitive_name(made_by[var]) in _LIGHT)

        return tiled_subgraph(made_by, [(v, self.window(v)) for v in needs], inside)


def _closed(scan: Eqn, jaxpr: Jaxpr, stacked: Sequence[Var], most_bytes: int, readers: Readers) -> _Epilogue:
    """The epilogue, without what would escape and is no smaller than the results."""
    outside: set[Var] = set()
    while True:
        epilogue = _followed(scan, jaxpr, stacked, outside, readers)
        large = {v for v in epilogue.escaping if v not in stacked and size_bytes(v) >= most_bytes}
        if not large:
            return epilogue
        outside |= large


def _followed(scan: Eqn, jaxpr: Jaxpr, stacked: Sequence[Var], outside: Set[Var], readers: Readers) -> _Epilogue:
    epilogue = _Epilogue(scan, dict.fromkeys(stacked, 0))
    axes, after = epilogue.axes, {*_final(scan)}
    inside: set[Eqn] = set()
    sums = []
    for eqn in jaxpr.eqns:
        reads = {*vars_of(eqn.invars)}
        if reads.isdisjoint(axes) and reads.isdisjoint(after):
            continue
        follows = reads.isdisjoint(after) and outside.isdisjoint(eqn.outvars)
        axis = _axis_of_result(eqn, epilogue) if follows else None
        if axis is not None:
            axes[eqn.outvars[0]] = axis
            inside.add(eqn)
            continue
        after.update(eqn.outvars)
        if follows and _adds_up(eqn, axes):
            sums.append(eqn)
            inside.add(eqn)
    escaping = tuple(v for v in axes if not inside.issuperset(readers[v]))
    return dataclasses.replace(epilogue, sums=tuple(sums), escaping=escaping)


def _axis_of_result(eqn: Eqn, epilogue: _Epilogue) -> int | None:
    """The axis along which entries lie in what an equation makes of entries one by one; None where it does not."""
    if len(eqn.outvars) != 1:
        return None
    shape = shape_of(eqn.outvars[0]).shape
    for axis in (axis for axis, size in enumerate(shape) if size == epilogue.scan.params["length"]):
        windows = operand_windows(eqn, _entry(len(shape), axis)) or ()
        own = [(v, w) for v, w in zip(eqn.invars, windows) if isinstance(v, Var) and v in epilogue.axes]
        if own and all(window == epilogue.window(v) for v, window in own):
            return axis
    return None


def _adds_up(eqn: Eqn, axes: dict[Var, int]) -> bool:
    if eqn.primitive.name != "reduce_sum" or eqn.invars[0] not in axes:
        return False
    return axes[eqn.invars[0]] in eqn.params["axes"] and dtype_of(eqn.invars[0]).itemsize >= _WIDE


def _summed(eqn: Eqn) -> Var:
    """What a sum adds up."""
    return vars_of(eqn.invars)[0]


def _emit(epilogue: _Epilogue, cut: TiledSubgraph, values: Sequence[Any]) -> list[Any]:
    """The loop with its epilogue: (final carry, sums, what stays stacked)."""
    scan, length = epilogue.scan, epilogue.scan.params["length"]
    results, tiling = _results(scan), Tiling((length,), (1,))
    moving = {need: need[1].index(Span(0)) for need in cut.sources if any(need[1]) and need[0] not in results}
    reads = tuple(dict.fromkeys((*vars_of(scan.invars), *(v for v, _ in cut.sources if v not in results))))
    env = dict(zip(reads, values, strict=True))
    operands = [value_of(env, atom) for atom in scan.invars]
    first, last = compat.scan_arity(scan)[0], sum(compat.scan_arity(scan))
    consts, carry, slices = operands[:first], operands[first:last], operands[last:]

    def step(running: Any, given: Any) -> Any:
        (carry, sums), (index, slices, entries) = running, given
        outputs = evaluate(scan.params["jaxpr"], [*consts, *carry, *slices])
        made = dict(zip(results, outputs[len(carry) :]))
        of_entries = {need: lax.expand_dims(x, (axis,)) for (need, axis), x in zip(moving.items(), entries)}
        blocks = [
            of_entries[v, w] if (v, w) in moving else lax.expand_dims(made[v], (0,)) if v in made else env[v]
            for v, w in cut.sources
        ]
        computed = dict(zip((v for v, _ in cut.outputs), cut.compute(blocks, [index], tiling)))
        more = [compat.bind(eqn, [computed[_summed(eqn)]])[0] for eqn in epilogue.sums]
        stacked = [lax.squeeze(computed[v], (epilogue.axes[v],)) for v in epilogue.escaping]
        return (outputs[: len(carry)], [a + b for a, b in zip(sums, more)]), stacked

    sums = [compat.zeros_of(eqn.outvars[0].aval) for eqn in epilogue.sums]
    entries = [jnp.moveaxis(env[v], axis, 0) for (v, _), axis in moving.items()]
    given = jnp.arange(length, dtype=jnp.int32), slices, entries
    with compat.at_position_of(scan):
        (carry, sums), stacked = lax.scan(
            step, (carry, sums), given, length, scan.params["reverse"], scan.params["unroll"]
        )
    together = [jnp.moveaxis(x, 0, epilogue.axes[v]) for v, x in zip(epilogue.escaping, stacked)]
    return [*carry, *sums, *together]


def _entry(rank: int, axis: int) -> Window:
    """The window of one entry along an axis."""
    return tuple(Span(0) if i == axis else None for i in range(rank))


def _final(scan: Eqn) -> list[Var]:
    """What the last iteration carries on."""
    return scan.outvars[: compat.scan_arity(scan)[1]]


def _results(scan: Eqn) -> list[Var]:
    return scan.outvars[compat.scan_arity(scan)[1] :]
