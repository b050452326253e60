"""A plan in parts: the whole program as scheduled, and one iteration of each loop in each way in which it runs."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from jaxremat.backends.devices import Device
from jaxremat.cost.pricing import price
from jaxremat.graph.graph import Graph
from jaxremat.graph.replay import Timeline
from jaxremat.graph.scheduled import ScheduledProgram, schedule_program
from jaxremat.loops.body import Body
from jaxremat.loops.decision import LoopDecision, Piece
from jaxremat.loops.emit import Emitter
from jaxremat.loops.find import find
from jaxremat.planner.problem import Problem
from jaxremat.report.names import Names
from jaxremat.report.origin import origin_of
from jaxremat.solvers.mincut.assemble import assemble
from jaxremat.trace.joint import Joint


@dataclasses.dataclass(frozen=True, eq=False)
class Version:
    """A program in one of the ways in which it can run: as written, or as planned.

    Attributes:
      problem: the program, its loops decided.
      scheduled: how it runs.
      timeline: what it is predicted to hold.
      device: what bytes and seconds are for.
    """

    problem: Problem
    scheduled: ScheduledProgram
    timeline: Timeline
    device: Device

    @functools.cached_property
    def names(self) -> Names:
        """What is known by name in the program."""
        return Names(self.problem.joint)


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """A scheduled program: the whole of it, or one iteration of a loop.

    Attributes:
      joint, graph: the program; value ids follow the equations' outputs.
      scheduled: how it runs.
      names: what is known by name in it.
      repeats: how often it runs.
      path: module path in front of its own paths.
      iterations: which iterations of its loop it is, such as `0–2 of 12`; empty outside of loops.
      hidden: primitives whose results are not talked about.
    """

    joint: Joint
    graph: Graph
    scheduled: ScheduledProgram
    names: Names
    repeats: int = 1
    path: str = ""
    iterations: str = ""
    hidden: tuple[str, ...] = ()

    @functools.cached_property
    def is_saved(self) -> np.ndarray:
        """[V] bool: forward values that the forward leaves for the backward."""
        return self.scheduled.is_saved(self.graph.num_values)

    @functools.cached_property
    def runs(self) -> np.ndarray:
        """[N] how often each node runs."""
        return np.bincount(self.scheduled.steps, minlength=self.graph.num_nodes)

    @functools.cached_property
    def wanted(self) -> np.ndarray:
        """[K] ids of the values to talk about: bytes that the backward reads, or that are saved for it."""
        value, node = self.graph.reads.T
        wanted = self.is_saved.copy()
        wanted[value[self.graph.backward[node]]] = True
        hidden = np.asarray([eqn.primitive.name in self.hidden for eqn in self.joint.eqns], bool)
        forward = ~self.graph.backward[self.graph.producer]
        told = wanted & forward & ~self._waits_elsewhere & ~hidden[self.graph.producer]
        return np.flatnonzero(told & ((self.graph.value_bytes > 0) | self.is_saved & self._is_stored))

    @functools.cached_property
    def _is_stored(self) -> np.ndarray:
        """[V] bool: values in another form than the one they are read in."""
        stored = {v for trip in self.joint.round_trips for v in trip.waiting}
        return np.asarray([var in stored for var in self.joint.values], bool)

    @functools.cached_property
    def _waits_elsewhere(self) -> np.ndarray:
        """[V] bool: values that are told of in the form in which they wait."""
        saved = {self.joint.values[value] for value in self.scheduled.saved}
        elsewhere = {trip.restored for trip in self.joint.round_trips if trip.stored in saved}
        return np.asarray([var in elsewhere for var in self.joint.values], bool)

    def seconds_of(self, values: Iterable[int]) -> float:
        """Seconds that `values` add, over all runs, by being recomputed, or would add if they were."""
        chosen = np.asarray(list(values), np.int64)
        others, all_saved = self.is_saved.copy(), self.is_saved.copy()
        others[chosen], all_saved[chosen] = False, True
        return self.repeats * max(0.0, self._cost(others) - self._cost(all_saved))

    def _cost(self, saved: np.ndarray) -> float:
        key = saved.tobytes()
        if key not in self._costs:
            self._costs[key] = float(self.graph.costs[assemble(self.graph, saved)].sum())
        return self._costs[key]

    @functools.cached_property
    def _costs(self) -> dict[bytes, float]:
        return {}


def parts_of(version: Version) -> tuple[Part, ...]:
    """The whole program, then one part per way in which an iteration of a loop runs."""
    problem = version.problem
    loops = tuple(zip(find(problem.primal), problem.loops)) if problem.loops else ()
    inside: list[Part] = []
    emitter = Emitter(version.device.backend, problem.storages)
    for loop, decision in loops:
        path = origin_of(problem.primal.jaxpr.eqns[loop.position]).path
        inside.extend(_iterations(emitter, loop.body, decision, 1, path, version.device))
    stacks = ("scan",) if loops else ()  # what loops stack is told by their iterations
    return (Part(problem.joint, problem.graph, version.scheduled, version.names, hidden=stacks), *inside)


def _iterations(
    emitter: Emitter, body: Body, decision: LoopDecision, times: int, path: str, device: Device
) -> Iterator[Part]:
    joint = emitter.joint(body, decision.inner)
    graph, names = price(joint, device), Names(joint)
    for piece, repeats, which in _leaves(decision.pieces, decision.length):
        steps = np.asarray((*piece.forward, *piece.backward), np.int32)
        scheduled = schedule_program(graph, steps, backward_start=len(piece.forward))
        yield Part(joint, graph, scheduled, names, times * repeats, path, which)
    for loop, inner in zip(body.loops, decision.inner):
        within = origin_of(body.primal.jaxpr.eqns[loop.position]).path
        inside = f"{path}/{within}".strip("/")
        yield from _iterations(emitter, loop.body, inner, times * decision.length, inside, device)


def _leaves(pieces: Sequence[Piece], length: int) -> Iterator[tuple[Piece, int, str]]:
    """(piece, how often an iteration runs so, which iterations these are) of the pieces without pieces inside."""
    start = 0
    for piece in pieces:
        last = start + piece.length - 1
        if piece.inside:
            which = f"{piece.count} segments of {piece.length // piece.count}"
            for leaf, repeats, _ in _leaves(piece.inside, piece.length):
                yield leaf, piece.count * repeats, f"{leaf.length} in each of {which}"
        elif piece.length == length:
            yield piece, piece.count, f"all {length}"
        else:
            yield piece, piece.count, f"{start}–{last} of {length}"
        start = last + 1
