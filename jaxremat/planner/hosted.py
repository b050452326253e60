"""A schedule of an unrolled program with some of the values that it saves moved to the host's memory, or to bytes.

The schedule stays what it was: what it saves is copied to the host once it is made, and fetched before it is read, by
the backward or by what runs again for it; or it is packed into bytes, and unpacked, likewise. Copies run by the clock
of the link, early enough to hide; or, where bytes count for more, at once, and right before what is fetched is read.
Every place where a copy begins, where one has to be there, and where a value is read first stands behind a barrier
(`emit.transfers`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import Any

import numpy as np

from jaxremat.backends.devices import Device
from jaxremat.base.compat import Eqn
from jaxremat.graph.scheduled import ScheduledProgram, schedule_program
from jaxremat.planner.problem import Problem, pose
from jaxremat.trace import jaxpr as jaxprs
from jaxremat.trace.primal import Primal
from jaxremat.trace.primitives import CUTTING, ELEMENTWISE
from jaxremat.trace.round_trips import LOSSLESS, RoundTrip, is_worth_a_transfer


@dataclasses.dataclass(frozen=True, eq=False)
class Pace:
    """When copies run: by the clock, so that they hide behind what runs meanwhile.

    Attributes:
      clock: [T + 1] seconds from the start of a schedule to each of its steps, and to its end.
      bytes_per_second: over the link, each way.
    """

    clock: np.ndarray
    bytes_per_second: float

    def copied(self, made: Iterable[tuple[int, int]]) -> list[tuple[float, float]]:
        """When values are copied to the host, one after another: (begins, ends), in seconds.

        Args:
          made: (the step after the one that makes a value, its bytes), in order.
        """
        spans, free = [], 0.0
        for step, size_bytes in made:
            begins = max(free, float(self.clock[step]))
            spans.append((begins, free := begins + size_bytes / self.bytes_per_second))
        return spans

    def fetched(self, read: Sequence[tuple[int, int]]) -> list[float]:
        """When fetches begin, one after another, so that each is done in time.

        Args:
          read: (the step that reads a value first, its bytes), in order.
        """
        begins, before = [], np.inf
        for step, size_bytes in reversed(read):
            before = min(before, float(self.clock[step])) - size_bytes / self.bytes_per_second
            begins.append(before)
        return begins[::-1]


@dataclasses.dataclass(frozen=True, eq=False)
class Hosting:
    """A program with a round trip for every value that may take one, beside the program without.

    Attributes:
      problem: the program with the round trips.
      trips: those of the forms that are asked for.
      node: [N] the node that each node of the program without is in that with them.
      value: [V] the same of values.
    """

    problem: Problem
    trips: Sequence[RoundTrip]
    node: np.ndarray
    value: np.ndarray

    @staticmethod
    def of(primal: Primal, device: Device, forms: Sequence[str]) -> Hosting:
        """By the names of storages."""
        problem = pose(primal, device, storages=(*LOSSLESS, *forms))
        joint = problem.joint
        trips = [trip for trip in joint.round_trips if trip.form not in LOSSLESS]
        ways = {id(eqn) for trip in trips for eqn in (trip.way_there, trip.way_back)}
        node = np.asarray([index for index, eqn in enumerate(joint.eqns) if id(eqn) not in ways], np.int32)
        value = np.asarray([value for index in node.tolist() for value in joint.values_of[index]], np.int32)
        return Hosting(problem, trips, node, value)

    @functools.cached_property
    def bytes_of(self) -> dict[int, int]:
        """Bytes of the device that every value, of the program without round trips, leaves free where it takes one."""
        return {value: _freed_bytes(trip) for value, trip in self._trip_of.items()}

    def program(self, program: ScheduledProgram, hosted: Set[int], pace: Pace | None) -> ScheduledProgram:
        """The schedule with some of its saved values on the host.

        Args:
          program: a schedule of the program without round trips.
          hosted: values that it saves, among those of `bytes_of`.
          pace: when copies run; None for as soon as a value is made, and not before it is read, which takes the least
            bytes, and all of the copies' time.
        """
        return _Rewriting(self, program, hosted, pace).program()

    def read_as_it_is(self, program: ScheduledProgram) -> set[int]:
        """Of a schedule of the program without round trips, values that what runs again in the backward reads, of those
        of `bytes_of` whose trips are good for estimates only."""
        again = program.steps[program.backward_start :]
        early = ~self.problem.graph.backward[self.node[again]]
        read = {v for node in self.node[again[early]].tolist() for v in self.problem.joint.values_read[node]}
        sources = {v for v, trip in self._trip_of.items() if trip.only_estimates}
        return {v for v in sources if int(self.value[v]) in read}

    @functools.cached_property
    def is_written(self) -> np.ndarray:
        """[N] whether what a node makes is written anyway: no kernel that reads it computes it on its way."""
        joint = self.problem.joint
        value, reader = joint.reads.T
        is_elementwise = np.asarray([eqn.primitive.name in ELEMENTWISE for eqn in joint.eqns], bool)
        on_the_way = np.zeros(len(joint.eqns), bool)
        on_the_way[joint.producer[value[is_elementwise[reader]]]] = True
        return ~on_the_way | self.problem.contracts

    @functools.cached_property
    def _trip_of(self) -> dict[Any, Any]:
        """By values of the program without round trips."""
        own = {self.problem.joint.values[value]: position for position, value in enumerate(self.value.tolist())}
        return {own[trip.source]: trip for trip in self.trips}

    @functools.cached_property
    def ways(self) -> dict[int, tuple[int, int]]:
        """The nodes of the round trip of each value of `bytes_of`: there, and back."""
        node_of = {id(eqn): node for node, eqn in enumerate(self.problem.joint.eqns)}
        return {v: (node_of[id(trip.way_there)], node_of[id(trip.way_back)]) for v, trip in self._trip_of.items()}


class _Rewriting:
    def __init__(self, hosting: Hosting, before: ScheduledProgram, hosted: Set[int], pace: Pace | None) -> None:
        self.hosting, self.before, self.hosted, self.pace = hosting, before, hosted, pace
        self.joint = hosting.problem.joint
        self.early = range(before.backward_start)
        self.late = range(before.backward_start, before.steps.size)
        self.nodes: list[int] = hosting.node[before.steps].tolist()  # [T] with the round trips
        self.own = np.full(self.joint.num_values, -1)  # [V] the value without round trips that each is, or restores
        self.own[hosting.value] = np.arange(hosting.value.size)
        for value, (_, back) in hosting.ways.items():
            self.own[self.joint.values_of[back]] = value

    def program(self) -> ScheduledProgram:
        first_reader = {value: steps[0] for value, steps in self._readers(self.late).items()}
        copied, awaited = self._copied_before()
        fetched = self._fetched_before(first_reader)
        read = {*first_reader.values(), *self._ends()}
        opens = {*copied, *awaited, *fetched, *read, *self._cuts(), *self.before.barriers}
        cut_again = self._cut_again(opens)
        steps: list[int] = []
        barriers: set[int] = set()
        places: list[int] = []
        for step, node in enumerate(self.nodes):
            barriers |= {len(steps), len(steps) + len(cut_again.get(step, ()))} if step in opens else set()
            steps += cut_again.get(step, ())
            steps += [self.hosting.ways[value][0] for value in copied.get(step, ())]
            places.append(len(steps))
            steps += [self.hosting.ways[value][1] for value in fetched.get(step, ())]
            steps.append(node)
            steps += [way for value in self._made(node) for way in self._ways(value, step in self.late)]
        start = [*places, len(steps)][self.before.backward_start]
        return self._recorded(steps, start, barriers)

    def _recorded(self, steps: Sequence[int], start: int, barriers: Set[int]) -> ScheduledProgram:
        """The record; a value on the host is saved as what is stored, even where what runs again reads the value."""
        graph = self.hosting.problem.graph
        made = schedule_program(graph, steps, backward_start=start, barriers=sorted(barriers), barrier_scope="sources")
        away = self.hosting.value[sorted(self.hosted)]
        return dataclasses.replace(made, saved=np.setdiff1d(made.saved, away).astype(np.int32))

    def _readers(self, among: range) -> dict[int, list[int]]:
        """The steps of one pass that read each hosted value."""
        readers: dict[int, list[int]] = {value: [] for value in sorted(self.hosted)}
        for step in among:
            for value in self.joint.values_read[self.nodes[step]]:
                readers.get(int(self.own[value]), []).append(step)
        return {value: steps for value, steps in readers.items() if steps}

    def _copied_before(self) -> tuple[dict[int, list[int]], set[int]]:
        """(what is copied to the host before each step, steps before which copies have ended)."""
        after = {v: step + 1 for step in self.early for v in self._made(self.nodes[step]) if v in self.hosted}
        if self.pace is None:
            last_reads = [steps[-1] for steps in self._readers(self.early).values()]
            return _grouped(after), {step + 1 for step in last_reads if self.hosting.is_written[self.nodes[step]]}
        spans = self.pace.copied([(step, self.hosting.bytes_of[value]) for value, step in after.items()])
        begins = {v: self._place_after(begin, after[v]) for v, (begin, _) in zip(after, spans)}
        return _grouped(begins), {self._place_after(end, begins[v]) for v, (_, end) in zip(after, spans)}

    def _fetched_before(self, first_reader: Mapping[int, int]) -> dict[int, list[int]]:
        """What is fetched before each step."""
        if self.pace is None:
            return _grouped(first_reader)
        read = sorted(first_reader, key=first_reader.__getitem__)
        begins = self.pace.fetched([(first_reader[value], self.hosting.bytes_of[value]) for value in read])
        return _grouped({value: self._place_before(begin) for value, begin in zip(read, begins)})

    def _place_after(self, seconds: float, first: int) -> int:
        """The first place for a barrier in the forward from a time, and a step, on; its end where there is none."""
        assert self.pace
        places = (step for step in self._places(self.early) if step >= first and self.pace.clock[step] >= seconds)
        return next(places, self.before.backward_start)

    def _place_before(self, seconds: float) -> int:
        """The last place for a barrier in the backward before a time; its beginning where there is none."""
        assert self.pace
        places = (step for step in self._places(self.late) if self.pace.clock[step] <= seconds)
        return max(places, default=self.late.start)

    def _places(self, among: range) -> Iterator[int]:
        """Places for barriers that take no kernel apart: behind contractions, or what else is written anyway."""
        is_place = self.hosting.problem.contracts if self.hosting.problem.contracts.any() else self.hosting.is_written
        return (step for step in among if step > among.start and is_place[self.nodes[step - 1]])

    def _ends(self) -> Iterator[int]:
        """Where stretches of the backward end: once what was fetched is read last, before more is made; and after each
        product that is a gradient, or it would wait, and what it reads with it."""
        yield from (steps[-1] + 1 for steps in self._readers(self.late).values())
        gradients = set(jaxprs.vars_of(self.joint.gradients))
        products = [step for step in self.late if self.hosting.problem.contracts[self.nodes[step]]]
        yield from (step + 1 for step in products if not gradients.isdisjoint(self._eqn(step).outvars))

    def _cuts(self) -> list[int]:
        """The steps of the backward that give parts, large ones, of what they read."""
        cuts = [step for step in self.late if self._eqn(step).primitive.name in CUTTING]
        return [step for step in cuts if any(map(is_worth_a_transfer, map(jaxprs.shape_of, self._eqn(step).outvars)))]

    def _cut_again(self, opens: Set[int]) -> dict[int, list[int]]:
        """By the step before which they run, cuts whose parts are not all read in the same stretch: those that wait are
        cut once more at its end, when the others are free."""
        again: dict[int, list[int]] = {}
        for step in self._cuts():
            end = min((other for other in opens if other > step), default=len(self.nodes))
            read = {value for other in range(step, end) for value in self.joint.values_read[self.nodes[other]]}
            parts = self.joint.values_of[self.nodes[step]]
            if end < len(self.nodes) and not read.isdisjoint(parts) and not read.issuperset(parts):
                again.setdefault(end, []).append(self.nodes[step])
        return again

    def _eqn(self, step: int) -> Eqn:
        return self.joint.eqns[self.nodes[step]]

    def _made(self, node: int) -> list[int]:
        """Values with a round trip that a node makes."""
        made = (int(self.own[value]) for value in self.joint.values_of[node])
        return [value for value in made if value in self.hosting.ways]

    def _ways(self, value: int, late: bool) -> Iterable[int]:
        there, back = self.hosting.ways[value]
        return () if value in self.hosted and not late else (there, back)


def _grouped(step_of: Mapping[int, int]) -> dict[int, list[int]]:
    """By step, the values that have it."""
    values: dict[int, list[int]] = {}
    for value, step in step_of.items():
        values.setdefault(step, []).append(value)
    return values


def _freed_bytes(trip: RoundTrip) -> int:
    waiting = sum(jaxprs.array_bytes(v) for v in trip.waiting if not jaxprs.is_on_host(v))
    return jaxprs.array_bytes(trip.source) - waiting
