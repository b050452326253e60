"""A schedule of an unrolled program with some of the values that it saves moved to the host's memory.

The schedule stays what it was: what it saves is copied to the host right after it is made, and fetched before it is
read, by the backward or by what runs again for it. Every place where a value is copied, fetched or read first stands
behind a barrier (`emit.transfers`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

import numpy as np

from jaxremat.backends.devices import Device
from jaxremat.graph.scheduled import ScheduledProgram, schedule_program
from jaxremat.planner.problem import Problem, pose
from jaxremat.trace import jaxpr as jaxprs
from jaxremat.trace.joint import Joint, Primal
from jaxremat.trace.round_trips import HOST, LOSSLESS, RoundTrip

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
        joint = hosting.problem.joint
        self.own = np.full(joint.num_values, -1)  # [V] the value without round trips that each value is, or restores
        self.own[hosting.value] = np.arange(hosting.value.size)
        for value, (_, back) in hosting.ways.items():
            self.own[joint.values_of[back]] = value

    def program(self) -> ScheduledProgram:
        readers = self._late_readers()
        first_reader = {value: steps[0] for value, steps in readers.items()}
        fetched = self._fetched_before(first_reader)
        done = {steps[-1] + 1 for steps in readers.values()}  # what was fetched is free before more is made
        opens = {*first_reader.values(), *fetched, *done, *self.before.barriers}
        steps: list[int] = []
        barriers: set[int] = set()
        places: list[int] = []
        for step, node in enumerate(self.hosting.node[self.before.steps].tolist()):
            is_late = step >= self.before.backward_start
            barriers |= {len(steps)} if step in opens else set()
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

    def _late_readers(self) -> dict[int, list[int]]:
        """The steps of the backward that read each hosted value."""
        before, read = self.before, self.hosting.problem.joint.values_read
        readers: dict[int, list[int]] = {value: [] for value in sorted(self.hosted)}
        for step in range(before.backward_start, before.steps.size):
            for value in read[int(self.hosting.node[before.steps[step]])]:
                readers.get(int(self.own[value]), []).append(step)
        return {value: steps for value, steps in readers.items() if steps}

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
        made = (int(self.own[value]) for value in self.hosting.problem.joint.values_of[node])
        return [value for value in made if value in self.hosting.ways]

    def _ways(self, value: int, late: bool) -> Iterable[int]:
        there, back = self.hosting.ways[value]
        return (there,) if value in self.hosted and not late else (there, back)


def _trips(joint: Joint) -> list[RoundTrip]:
    return [trip for trip in joint.round_trips if trip.form == HOST.form]
