"""Decisions for loops: what each iteration stacks, which iterations run again in segments, at a price per byte.

An iteration is solved once, by minimum cuts, into a hull of options (`options`). The loop is a homogeneous chain
over them: at a price of one byte for the time it is held, every iteration takes the option that is cheapest; early
iterations hold their bytes longer, so their price is slightly higher, and around a corner of the hull the loop falls
into a piece that saves less and one that saves more. Nested segments extend the hull beyond 'only the carry': with d
levels, n iterations hold of the order of n^(1/(d+1)) carries, and every level runs the forward once more. (The uniform
relative of Griewank's treeverse, Optimization Methods and Software 1992, and of Chen et al., 2016.)
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxremat.backends.devices import Device
from jaxremat.base.hulls import lower_hull
from jaxremat.base.remembering import while_alive
from jaxremat.loops.body import Body, Loop
from jaxremat.loops.decision import LoopDecision, Piece
from jaxremat.loops.emit import Emitter
from jaxremat.loops.find import find
from jaxremat.loops.options import LARGEST_PRICE, SMALLEST_PRICE, IterationHull, IterationOption, iteration_hull
from jaxremat.trace.primal import Primal

_MOST_PIECES = 3  # benchmarks/constants.py; each piece is a loop of its own in the program
_NEAR = 1.25  # what is held is a / s + b * s: so far from where they balance it is (1.25 + 1 / 1.25) / 2, 2.5 % more
_DEEPEST = 4  # with segments of s iterations, four levels hold a loop of s ** 5; benchmarks/constants.py
_FIRST_ITERATION_SURCHARGE = 0.05  # over the last: see `at_price`, benchmarks/surcharge.py
_INNER_PRICES = tuple(10.0 ** np.arange(-14, -5))  # seconds per byte, from the fastest memory to the slowest link


@dataclasses.dataclass(frozen=True)
class LoopOption:
    """A decision and what it is expected to take.

    Attributes:
      held_bytes: between the loop's forward and its backward.
      transient_bytes: during its backward, beyond that.
      extra_seconds: time added by running again.
      decision: what to emit.
    """

    held_bytes: int
    transient_bytes: int
    extra_seconds: float
    decision: LoopDecision

    def price(self, seconds_per_byte: float) -> float:
        return self.extra_seconds + seconds_per_byte * (self.held_bytes + self.transient_bytes)


@dataclasses.dataclass(frozen=True)
class _Choice:
    """One way to treat an iteration: an option of the hull at a depth of nesting (0: none), per iteration."""

    option: IterationOption
    depth: int
    bytes: float
    seconds: float


class Loops:
    """The loops of a program and their decisions on one device: every body is differentiated and solved once.

    Args:
      primal: the program.
      device: what costs and bytes are for.
      storages: forms in which values may wait for the backward.
    """

    def __init__(self, primal: Primal, device: Device, storages: Sequence[str] = ()) -> None:
        self.primal = primal
        self.device = device
        self.found = find(primal)
        self.emitter = Emitter(device.backend, storages)
        self._at: dict[float, tuple[LoopOption, ...]] = {}
        self._hulls: dict[tuple[Body, tuple[LoopDecision, ...], bool], IterationHull] = {}

    def emitted(self, decisions: Sequence[LoopDecision]) -> Callable[[Sequence[Any]], list[Any]]:
        """Runs the program on flat inputs with its loops as decided."""
        return self.emitter.program(self.primal, self.found, decisions)

    def decide(self, seconds_per_byte: float) -> tuple[LoopDecision, ...]:
        """The cheapest decision for each loop when holding one byte costs `seconds_per_byte`, deterministic."""
        return tuple(option.decision for option in self.at(seconds_per_byte))

    def at(self, seconds_per_byte: float) -> tuple[LoopOption, ...]:
        """The same with what each decision is expected to take."""
        if seconds_per_byte not in self._at:
            self._at[seconds_per_byte] = tuple(self.estimate(loop, seconds_per_byte) for loop in self.found)
        return self._at[seconds_per_byte]

    def estimate(self, loop: Loop, seconds_per_byte: float) -> LoopOption:
        """The cheapest decision for one loop, at any depth, with what it is expected to take."""
        price = min(max(seconds_per_byte, SMALLEST_PRICE), LARGEST_PRICE)
        prices = {_rounded(price), _rounded(price * loop.length)}  # stacks inside live in one iteration or in all
        candidates = [
            at_price(self.hull(loop, inner), loop.length, inner, price)
            for inner in self._inner(loop.body, sorted(prices))
        ]
        return self._with_barriers(loop, min(candidates, key=lambda candidate: candidate.price(price)))

    def checkpointed(self, loops: Sequence[Loop]) -> tuple[LoopDecision, ...]:
        """Checkpoints around every iteration, as their authors place them, of loops and of those inside."""
        return tuple(self._checkpointed(loop, self.checkpointed(loop.body.loops)) for loop in loops)

    def _checkpointed(self, loop: Loop, inner: tuple[LoopDecision, ...]) -> LoopDecision:
        hull = self.hull(loop, inner)
        piece = Piece(loop.length, hull.checkpointed.forward, hull.checkpointed.backward)
        return LoopDecision((piece,), inner, self._has_barriers(loop), hull.gradient)

    def options(self, loop: Loop) -> tuple[LoopOption, ...]:
        """The hull of decisions that treat every iteration alike, from the most bytes held to the fewest."""
        found: dict[LoopDecision, LoopOption] = {}
        for inner in self._inner(loop.body, _INNER_PRICES):
            hull = self.hull(loop, inner)
            for choice in _choices(hull, loop.length):
                option = self._with_barriers(loop, _uniform(hull, choice, loop.length, inner))
                found.setdefault(option.decision, option)
        held_bytes = lambda option: option.held_bytes + option.transient_bytes
        return tuple(lower_hull(found.values(), held_bytes, lambda option: option.extra_seconds)[::-1])

    def hull(self, loop: Loop, inner: tuple[LoopDecision, ...] = ()) -> IterationHull:
        """What one iteration of a loop may do, its own loops as decided."""
        key = loop.body, inner, self._has_barriers(loop)
        if key not in self._hulls:
            joint = self.emitter.joint(loop.body, inner)
            self._hulls[key] = iteration_hull(loop.body, joint, self.device, self._has_barriers(loop))
        return self._hulls[key]

    def _inner(self, body: Body, prices: Sequence[float]) -> list[tuple[LoopDecision, ...]]:
        """Distinct decisions for the loops inside, at some prices."""
        each = [tuple(self.estimate(loop, price).decision for loop in body.loops) for price in prices]
        return list(dict.fromkeys(each))

    def _with_barriers(self, loop: Loop, option: LoopOption) -> LoopOption:
        decision = dataclasses.replace(option.decision, has_barriers=self._has_barriers(loop))
        return dataclasses.replace(option, decision=decision)

    def _has_barriers(self, loop: Loop) -> bool:
        """Whether what runs again in an iteration waits behind barriers. The two passes over a shard_map meet in one
        flat program, where nothing else keeps it apart from what ran before."""
        return self.device.backend.fences_loop_bodies or loop.kind == "shard_map"


def in_one_piece(seconds_per_byte: float) -> float:
    """A price near another one at which no loop falls into the pieces that it falls into there."""
    return (1 + _FIRST_ITERATION_SURCHARGE) * seconds_per_byte


def at_price(hull: IterationHull, length: int, inner: tuple[LoopDecision, ...], seconds_per_byte: float) -> LoopOption:
    """The cheapest way at a price of a byte.

    Iterations are equal and held together: a slope of the price lets one after the other change its mind, and a steep
    one makes them choose among more than two neighbours of the hull.
    """
    choices = _choices(hull, length)
    prices = seconds_per_byte * (1 + _FIRST_ITERATION_SURCHARGE * (1 - (np.arange(length) + 0.5) / length))
    totals = np.asarray([c.seconds + prices * c.bytes for c in choices])
    runs = [(choices[i], len(list(group))) for i, group in itertools.groupby(totals.argmin(0).tolist())]
    return _combined(hull, _without_remainders(hull, _at_most(_MOST_PIECES, runs)), inner)


def _at_most(limit: int, runs: list[tuple[_Choice, int]]) -> list[tuple[_Choice, int]]:
    """Fewer runs: the shortest joins the neighbour that holds less."""
    runs = list(runs)
    while len(runs) > limit:
        shortest = min(range(len(runs)), key=lambda i: runs[i][1])
        near = [i for i in (shortest - 1, shortest + 1) if 0 <= i < len(runs)]
        target = min(near, key=lambda i: runs[i][0].bytes)
        runs[target] = runs[target][0], runs[target][1] + runs[shortest][1]
        del runs[shortest]
    return runs


def _without_remainders(hull: IterationHull, runs: list[tuple[_Choice, int]]) -> list[tuple[_Choice, int]]:
    """Iterations that do not fill a segment join the next run, which saves more."""
    out, carried = [], 0
    for i, (choice, length) in enumerate(runs):
        first = _nested(hull, choice.option, length + carried, choice.depth)[0]
        used = first.length if i + 1 < len(runs) else length + carried
        carried = length + carried - used
        out.append((choice, used))
    return out


def _combined(hull: IterationHull, runs: Sequence[tuple[_Choice, int]], inner: tuple[LoopDecision, ...]) -> LoopOption:
    parts = [_uniform(hull, choice, length, inner) for choice, length in runs]
    return LoopOption(
        sum(part.held_bytes for part in parts),
        max(part.transient_bytes for part in parts),
        sum(part.extra_seconds for part in parts),
        LoopDecision(tuple(piece for part in parts for piece in part.decision.pieces), inner, gradient=hull.gradient),
    )


def _uniform(hull: IterationHull, choice: _Choice, length: int, inner: tuple[LoopDecision, ...]) -> LoopOption:
    pieces = _nested(hull, choice.option, length, choice.depth)
    held, transient, seconds = _measure(hull, choice.option, pieces)
    decision = LoopDecision(pieces, inner, gradient=hull.gradient)
    return LoopOption(held, transient + choice.option.transient_bytes, seconds, decision)


@while_alive
def _choices(hull: IterationHull, length: int) -> list[_Choice]:
    """Plain and nested ways to treat `length` iterations, on their lower hull, from the most bytes to the fewest."""
    found = []
    for option in hull.options:
        for depth in range(_DEEPEST + 1):
            pieces = _nested(hull, option, length, depth)
            if depth and not pieces[0].inside:
                break
            held, transient, seconds = _measure(hull, option, pieces)
            total = held + transient + option.transient_bytes + option.premium_bytes
            found.append(_Choice(option, depth, total / length, seconds / length))
    return lower_hull(found, lambda c: c.bytes, lambda c: c.seconds)[::-1]


def _nested(hull: IterationHull, option: IterationOption, length: int, depth: int) -> tuple[Piece, ...]:
    """Pieces for `length` iterations with `depth` levels of segments; what does not divide is a last, flatter piece."""
    leaf = Piece(length, option.forward, option.backward)
    if depth == 0 or length < 2:
        return (leaf,)
    inside = _segment_length(length, depth, option.stacked_bytes, max(hull.carry_bytes, 1))
    count, rest = divmod(length, inside)
    if count < 2:
        return (leaf,)
    pieces = [Piece(count, inside=_nested(hull, option, inside, depth - 1))]
    return (*pieces, *(_nested(hull, option, rest, depth - 1) if rest else ()))


def _segment_length(length: int, depth: int, stacked_bytes: int, carry_bytes: int) -> int:
    """Iterations per outermost segment: near what balances the levels, without a remainder where that is near too."""
    count = max((length * stacked_bytes / carry_bytes) ** (1 / (depth + 1)), 1.0)
    best = min(max(round(length / count), 1), length)
    near = range(max(math.ceil(best / _NEAR), 1), min(math.floor(_NEAR * best), length) + 1)
    even = [inside for inside in near if length % inside == 0]
    return min(even, key=lambda inside: abs(inside - best)) if even else best


def _measure(hull: IterationHull, option: IterationOption, pieces: Sequence[Piece]) -> tuple[int, int, float]:
    """(bytes held, bytes held in addition while a segment runs, seconds added)."""
    held, transient, seconds = 0, 0, 0.0
    for piece in pieces:
        if piece.inside:
            inner_held, inner_transient, inner_seconds = _measure(hull, option, piece.inside)
            held += piece.count * hull.carry_bytes
            transient = max(transient, inner_held + inner_transient)
            seconds += piece.count * inner_seconds + piece.length * hull.forward_seconds
        else:
            held += piece.count * option.stacked_bytes
            seconds += piece.count * option.seconds
    return held, transient, seconds


def _rounded(price: float) -> float:
    """The next power of two: few distinct prices mean few bodies to solve."""
    return 2.0 ** round(math.log2(price))
