"""A schedule of an unrolled program with some of the values that it saves moved to the host's memory.

The schedule stays what it was: what it saves is copied to the host right after it is made, and fetched before it is
read, by the backward or by what runs again for it. Every place where a value is copied, fetched or read first stands
behind a barrier (`emit.transfers`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import Any

import numpy as np

from jaxremat.backends.devices import Device
from jaxremat.base.compat import Eqn
from jaxremat.cost.flops import is_contraction
from jaxremat.graph.scheduled import ScheduledProgram, schedule_program
from jaxremat.planner.problem import Problem, pose
from jaxremat.trace import jaxpr as jaxprs
from jaxremat.trace.joint import Joint, Primal
from jaxremat.trace.primitives import CUTTING, ELEMENTWISE
from jaxremat.trace.round_trips import HOST, LOSSLESS, RoundTrip, is_worth_a_transfer

AHEAD = (1, 0)
"""Stretches between two fetches that a fetch may run ahead of its reader: with none, XLA's schedule shows no overlap,
and each one more may hold another value on the device: 254 and 287 MiB of a U-Net on an H200."""


@dataclasses.dataclass(frozen=True, eq=False)
class Hosting:
    """A program with a round trip over the link for every value that may take one, beside the program without.

    Attributes:
      problem: the program with the round trips.
      node: [N] the node that each node of the program without is in that with them.
      value: [V] the same of values.
    """

    problem: Problem
    node: np.ndarray
    value: np.ndarray

    @staticmethod
    def of(primal: Primal, device: Device) -> Hosting:
        problem = pose(primal, device, storages=(*LOSSLESS, HOST.form))
        joint = problem.joint
        over_link = {id(eqn) for trip in _trips(joint) for eqn in (trip.way_there, trip.way_back)}
        node = np.asarray([index for index, eqn in enumerate(joint.eqns) if id(eqn) not in over_link], np.int32)
        value = np.asarray([value for index in node.tolist() for value in joint.values_of[index]], np.int32)
        return Hosting(problem, node, value)

    @functools.cached_property
    def bytes_of(self) -> dict[int, int]:
        """Bytes on the host of every value, of the program without round trips, that may go there."""
        return {value: jaxprs.array_bytes(trip.stored) for value, trip in self._trip_of.items()}

    def program(self, program: ScheduledProgram, hosted: Set[int], ahead: int) -> ScheduledProgram:
        """The schedule with some of its saved values on the host.

        Args:
          program: a schedule of the program without round trips.
          hosted: values that it saves, among those of `bytes_of`.
          ahead: one of `AHEAD`.
        """
        return _Rewriting(self, program, hosted, ahead).program()

    @functools.cached_property
    def _trip_of(self) -> dict[Any, Any]:
        """By values of the program without round trips."""
        own = {self.problem.joint.values[value]: position for position, value in enumerate(self.value.tolist())}
        return {own[trip.source]: trip for trip in _trips(self.problem.joint)}

    @functools.cached_property
    def ways(self) -> dict[int, tuple[int, int]]:
        """The nodes of the round trip of each value of `bytes_of`: there, and back."""
        node_of = {id(eqn): node for node, eqn in enumerate(self.problem.joint.eqns)}
        return {v: (node_of[id(trip.way_there)], node_of[id(trip.way_back)]) for v, trip in self._trip_of.items()}


class _Rewriting:
    def __init__(self, hosting: Hosting, before: ScheduledProgram, hosted: Set[int], ahead: int) -> None:
        self.hosting, self.before, self.hosted, self.ahead = hosting, before, hosted, ahead
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
        fetched = self._fetched_before(first_reader)
        opens = {*first_reader.values(), *fetched, *self._ends(), *self._cuts(), *self.before.barriers}
        cut_again = self._cut_again(opens)
        steps: list[int] = []
        barriers: set[int] = set()
        places: list[int] = []
        for step, node in enumerate(self.nodes):
            is_late = step in self.late
            barriers |= {len(steps), len(steps) + len(cut_again.get(step, ()))} if step in opens else set()
            steps += cut_again.get(step, ())
            places.append(len(steps))
            steps += [self.hosting.ways[value][1] for value in fetched.get(step, ())]
            steps.append(node)
            made = self._made(node)
            barriers |= {len(steps)} if not is_late and not self.hosted.isdisjoint(made) else set()
            steps += [way for value in made for way in self._ways(value, is_late)]
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

    def _ends(self) -> Iterator[int]:
        """Where stretches end: once what was fetched, or copied, is read last, before more is made; and after each
        product that is a gradient, or it would wait, and what it reads with it."""
        yield from (steps[-1] + 1 for steps in self._readers(self.late).values())
        yield from (steps[-1] + 1 for steps in self._readers(self.early).values() if self._is_written(steps[-1]))
        gradients = set(jaxprs.vars_of(self.joint.gradients))
        products = [step for step in self.late if is_contraction(self._eqn(step))]
        yield from (step + 1 for step in products if not gradients.isdisjoint(self._eqn(step).outvars))

    def _is_written(self, step: int) -> bool:
        """Whether what a step makes is written anyway: no kernel that reads it computes it on its way."""
        value, reader = self.joint.reads.T
        readers = reader[np.isin(value, self.joint.values_of[self.nodes[step]])]
        is_read_on_the_way = any(self.joint.eqns[node].primitive.name in ELEMENTWISE for node in readers)
        return is_contraction(self._eqn(step)) or not is_read_on_the_way

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

    def _fetched_before(self, first_reader: Mapping[int, int]) -> dict[int, list[int]]:
        """What is fetched before each step: a number of the steps that read something first ahead of its own."""
        reads = sorted(set(first_reader.values()))
        earlier = dict(zip(reads, [self.before.backward_start] * self.ahead + reads))
        fetched: dict[int, list[int]] = {}
        for value, step in first_reader.items():
            fetched.setdefault(earlier[step], []).append(value)
        return fetched

    def _made(self, node: int) -> list[int]:
        """Values with a round trip that a node makes."""
        made = (int(self.own[value]) for value in self.joint.values_of[node])
        return [value for value in made if value in self.hosting.ways]

    def _ways(self, value: int, late: bool) -> Iterable[int]:
        there, back = self.hosting.ways[value]
        return (there,) if value in self.hosted and not late else (there, back)


def _trips(joint: Joint) -> list[RoundTrip]:
    return [trip for trip in joint.round_trips if trip.form == HOST.form]
