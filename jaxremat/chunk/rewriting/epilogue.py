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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxremat.base import compat
from jaxremat.base.compat import Eqn, Jaxpr, Var
from jaxremat.chunk.rewriting import program
from jaxremat.chunk.rewriting.finding import Finding, producers_of, readers_of
from jaxremat.chunk.tiling.subgraph import TiledSubgraph, operand_windows, tiled_subgraph
from jaxremat.chunk.tiling.tiles import Span, Tiling, Window
from jaxremat.trace.jaxpr import dtype_of, evaluate, inline_calls, shape_of, size_bytes, value_of, vars_of
from jaxremat.trace.primal import Primal
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
    if sum(map(epilogue.stacked_bytes, epilogue.escaping)) >= stacked_bytes:
        return None
    made_by = producers_of(jaxpr)
    cuts = {first: epilogue.cut(made_by, first) for first in epilogue.firsts}
    sources = [v for cut in cuts.values() for v, _ in cut.sources if v not in stacked]
    reads = tuple(dict.fromkeys((*vars_of(scan.invars), *sources)))
    return Finding(
        KIND,
        compat.source_line(scan),
        shape_of(stacked[0]).shape,
        max(map(size_bytes, stacked)),
        reads=reads,
        gives=(*_final(scan), *(eqn.outvars[0] for eqn in epilogue.sums), *epilogue.escaping),
        emit=functools.partial(_emit, epilogue, cuts, reads),
    )


class _Entries(NamedTuple):
    """Where an array holds entries of iterations: along which axis, and the iteration that the first one is of."""

    axis: int
    first: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class _Epilogue:
    """What is computed of the results of a scan.

    Attributes:
      scan: the loop.
      entries: where its results, and all that is computed of them entry by entry, hold which entries.
      sums: equations that add up such entries.
      escaping: what is read by others, and stays stacked.
    """

    scan: Eqn
    entries: dict[Var, _Entries]
    sums: tuple[Eqn, ...] = ()
    escaping: tuple[Var, ...] = ()

    @property
    def length(self) -> int:
        return self.scan.params["length"]

    @property
    def firsts(self) -> tuple[int, ...]:
        """The iterations at which what is needed begins."""
        return tuple(dict.fromkeys(self.entries[v].first for v in self._needs))

    @property
    def _needs(self) -> list[Var]:
        return list(dict.fromkeys([*map(_summed, self.sums), *self.escaping]))

    def covers_all(self, var: Var) -> bool:
        """Whether an array holds an entry of every iteration."""
        return self.entries[var].first == 0 and self.count(var) == self.length

    def count(self, var: Var) -> int:
        """The number of entries."""
        return shape_of(var).shape[self.entries[var].axis]

    def stacked_bytes(self, var: Var) -> int:
        """Bytes of a stack with an entry of every iteration."""
        return size_bytes(var) // max(self.count(var), 1) * self.length

    def of_stack(self, var: Var, stack: jax.Array) -> jax.Array:
        """The array of which every iteration has stacked an entry, whether it has one or not."""
        axis, first = self.entries[var]
        return jnp.moveaxis(lax.slice_in_dim(stack, first, first + self.count(var)), 0, axis)

    def cut(self, made_by: dict[Var, Eqn], first: int) -> TiledSubgraph:
        """The equations that move, from what is needed from an iteration on to its sources."""
        needs = [v for v in self._needs if self.entries[v].first == first]
        windows = [_entry(len(shape_of(v).shape), self.entries[v].axis) for v in needs]

        def inside(var: Var, window: Window) -> bool:
            return any(window) and (var in self.entries or compat.primitive_name(made_by[var]) in _LIGHT)

        return tiled_subgraph(made_by, list(zip(needs, windows)), inside)


def _closed(scan: Eqn, jaxpr: Jaxpr, stacked: Sequence[Var], most_bytes: int, readers: Readers) -> _Epilogue:
    """The epilogue, without what would escape and is no smaller than the results."""
    outside: set[Var] = set()
    while True:
        epilogue = _followed(scan, jaxpr, stacked, outside, readers)
        large = {v for v in epilogue.escaping if v not in stacked and epilogue.stacked_bytes(v) >= most_bytes}
        if not large:
            return epilogue
        outside |= large


def _followed(scan: Eqn, jaxpr: Jaxpr, stacked: Sequence[Var], outside: Set[Var], readers: Readers) -> _Epilogue:
    epilogue = _Epilogue(scan, dict.fromkeys(stacked, _Entries(0)))
    entries, after = epilogue.entries, {*_final(scan)}
    inside: set[Eqn] = set()
    sums = []
    for eqn in jaxpr.eqns:
        reads = {*vars_of(eqn.invars)}
        if reads.isdisjoint(entries) and reads.isdisjoint(after):
            continue
        follows = reads.isdisjoint(after) and outside.isdisjoint(eqn.outvars)
        made = _entries_of_result(eqn, epilogue) if follows else None
        if made is not None:
            entries[eqn.outvars[0]] = made
            inside.add(eqn)
            continue
        after.update(eqn.outvars)
        if follows and _adds_up(eqn, entries):
            sums.append(eqn)
            inside.add(eqn)
    escaping = tuple(v for v in entries if not inside.issuperset(readers[v]))
    return dataclasses.replace(epilogue, sums=tuple(sums), escaping=escaping)


def _entries_of_result(eqn: Eqn, epilogue: _Epilogue) -> _Entries | None:
    """Where entries lie in what an equation makes of entries one by one; None where it does not."""
    if len(eqn.outvars) != 1:
        return None
    rank = len(shape_of(eqn.outvars[0]).shape)
    for axis in range(rank):
        windows = operand_windows(eqn, _entry(rank, axis)) or ()
        own = [(v, w) for v, w in zip(eqn.invars, windows) if isinstance(v, Var) and v in epilogue.entries]
        read = [(epilogue.entries[v], w) for v, w in own]
        firsts = {_first_read(own, window) for own, window in read}
        if len(firsts) == 1 and (first := firsts.pop()) is not None:
            return _Entries(axis, first)
    return None


def _first_read(own: _Entries, window: Window) -> int | None:
    """The iteration whose entry is read for the first one of a result; None where others are read with it."""
    span = window[own.axis]
    is_entry = span is not None and window == _entry(len(window), own.axis, span.offset)
    return own.first + span.offset if span is not None and is_entry else None


def _adds_up(eqn: Eqn, entries: dict[Var, _Entries]) -> bool:
    """Whether an equation sums over iterations; to take the only one that is there is a sum, too."""
    if eqn.primitive.name not in ("reduce_sum", "squeeze") or eqn.invars[0] not in entries:
        return False
    summed = _summed(eqn)
    if eqn.primitive.name == "squeeze":
        return entries[summed].axis in eqn.params["dimensions"] and jnp.issubdtype(dtype_of(summed), jnp.inexact)
    return entries[summed].axis in eqn.params["axes"] and dtype_of(summed).itemsize >= _WIDE


def _summed(eqn: Eqn) -> Var:
    """What a sum adds up."""
    return vars_of(eqn.invars)[0]


def _emit(
    epilogue: _Epilogue, cuts: dict[int, TiledSubgraph], reads: Sequence[Var], values: Sequence[Any]
) -> list[Any]:
    """The loop with its epilogue: (final carry, sums, what stays stacked)."""
    scan, results, env = epilogue.scan, _results(epilogue.scan), dict(zip(reads, values, strict=True))
    operands = [value_of(env, atom) for atom in scan.invars]
    begin, end = compat.scan_arity(scan)[0], sum(compat.scan_arity(scan))
    consts, carry, slices = operands[:begin], operands[begin:end], operands[end:]
    moving = {
        (first, v, w): _aligned(env[v], w, first, epilogue.length)
        for first, cut in cuts.items()
        for v, w in cut.sources
        if any(w) and v not in results
    }

    def step(running: Any, given: Any) -> Any:
        (carry, sums), (index, slices, entries) = running, given
        outputs = evaluate(scan.params["jaxpr"], [*consts, *carry, *slices])
        of_results = {v: lax.expand_dims(x, (0,)) for v, x in zip(results, outputs[len(carry) :])}
        of_sources = {need: lax.expand_dims(x, (_axis(need[2]),)) for need, x in zip(moving, entries)}
        computed: dict[Var, jax.Array] = {}
        for first, cut in cuts.items():
            blocks = [of_sources.get((first, v, w), env.get(v, of_results.get(v))) for v, w in cut.sources]
            found = cut.compute(blocks, [index - first], Tiling((epilogue.length,), (1,)))
            computed.update(zip((v for v, _ in cut.outputs), found))
        more = [_share(epilogue, eqn, computed[_summed(eqn)], index) for eqn in epilogue.sums]
        stacked = [lax.squeeze(computed[v], (epilogue.entries[v].axis,)) for v in epilogue.escaping]
        return (outputs[: len(carry)], [a + b for a, b in zip(sums, more)]), stacked

    sums = [compat.zeros_of(eqn.outvars[0].aval) for eqn in epilogue.sums]
    given = jnp.arange(epilogue.length, dtype=jnp.int32), slices, list(moving.values())
    with compat.at_position_of(scan):
        (carry, sums), stacked = lax.scan(
            step, (carry, sums), given, epilogue.length, scan.params["reverse"], scan.params["unroll"]
        )
    return [*carry, *sums, *(epilogue.of_stack(v, x) for v, x in zip(epilogue.escaping, stacked))]


def _share(epilogue: _Epilogue, eqn: Eqn, entry: jax.Array, index: jax.Array) -> jax.Array:
    """What an iteration adds to a sum; nothing where the sum has no entry of it."""
    share = compat.bind(eqn, [entry])[0]
    if epilogue.covers_all(_summed(eqn)):
        return share
    first = epilogue.entries[_summed(eqn)].first
    is_there = (index >= first) & (index < first + epilogue.count(_summed(eqn)))
    return jnp.where(is_there, share, jnp.zeros_like(share))


def _aligned(array: jax.Array, window: Window, first: int, length: int) -> jax.Array:
    """[length, ...]: what each iteration reads of an array, of which the window of iteration `first` is given.

    Iterations before and after those that the array has entries of read its first and its last one.
    """
    axis = _axis(window)
    (offset,) = (span.offset for span in window if span is not None)
    size, shift = array.shape[axis], offset - first
    if shift or size != length:
        places = np.clip(np.arange(length, dtype=np.int32) + shift, 0, size - 1)
        array = jnp.take(array, places, axis, mode="clip")
    return jnp.moveaxis(array, axis, 0)


def _axis(window: Window) -> int:
    """The axis that a window of entries moves along."""
    return next(axis for axis, span in enumerate(window) if span is not None)


def _entry(rank: int, axis: int, offset: int = 0) -> Window:
    """The window of one entry along an axis."""
    return tuple(Span(0, offset) if i == axis else None for i in range(rank))


def _final(scan: Eqn) -> list[Var]:
    """What the last iteration carries on."""
    return scan.outvars[: compat.scan_arity(scan)[1]]


def _results(scan: Eqn) -> list[Var]:
    return scan.outvars[compat.scan_arity(scan)[1] :]
