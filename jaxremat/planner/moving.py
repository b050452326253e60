"""What planners share that let values of a schedule wait elsewhere, or in another form, than it saves them in.

They begin with schedules that keep too much, and move what waits the longest at the peak, until that fits.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from jaxremat.backends.devices import Device
from jaxremat.planner.hosted import Hosting, Pace
from jaxremat.planner.timed import TimedOutcome, TimedPlanner
from jaxremat.trace.primal import Primal

MOST_TRIED = 4  # outcomes that keep too much, a second each in programs of 1000 equations; benchmarks/constants.py
_MOST_ROUNDS = 6  # peaks at which more is moved: a bound, two or three are the rule; benchmarks/constants.py


class MovesValues:
    """Schedules of a program whose values may wait in other forms.

    Args:
      primal: a program without differentiable loops.
      device: what it runs on.
      forms: names of storages, of which the first that takes a value stores it.
      most_bytes: the most that may be moved.
    """

    def __init__(self, primal: Primal, device: Device, forms: Sequence[str], most_bytes: float = np.inf) -> None:
        self.device = device
        self.own = TimedPlanner(primal, device)
        self.traits = self.own.traits
        self._forms, self._most_bytes = forms, most_bytes
        self._made: dict[tuple[int, tuple[int, ...], bool], TimedOutcome] = {}

    @property
    def plain(self) -> TimedOutcome:
        """The program as it stands."""
        return self.own.plain

    @property
    def unpermitted(self) -> TimedPlanner:
        """The planner that moves nothing."""
        return self.own

    @functools.cached_property
    def _hosting(self) -> Hosting:
        return Hosting.of(self.own.primal, self.device, self._forms)

    def _seconds_waited(self, moved: TimedOutcome) -> float:
        """What an outcome waits for what is moved, beside the time of its kernels."""
        return 0.0

    def _moved_at(self, outcome: TimedOutcome, peak_bytes: int, pace: Pace | None) -> TimedOutcome:
        moved, hosted = outcome, set[int]()
        for _ in range(_MOST_ROUNDS):
            more = self._waiting_at_peak(outcome, moved, hosted, moved.peak_bytes - peak_bytes)
            if moved.peak_bytes <= peak_bytes or not more:
                break
            hosted |= more
            moved = self._hosted(outcome, hosted, pace)
        return moved

    def _waiting_at_peak(self, outcome: TimedOutcome, moved: TimedOutcome, hosted: set[int], excess: int) -> set[int]:
        """What else to move: of the values that wait for the backward at the peak the earliest made, until they make up
        for an excess, as far as the host's budget goes; in the place of the last one the smallest that does."""
        bytes_of, is_output = self._hosting.bytes_of, outcome.problem.graph.is_output
        room = self._most_bytes - sum(bytes_of[value] for value in hosted)
        waiting = self._waiting(outcome, self._peak_step(outcome, moved))
        taken = hosted | self._hosting.read_as_it_is(outcome.program)
        movable = [v for v in waiting if v in bytes_of and v not in taken and not is_output[v]]
        chosen: set[int] = set()
        while excess > 0 and (movable := [v for v in movable if bytes_of[v] <= room and v not in chosen]):
            enough = [v for v in movable if excess <= bytes_of[v] <= bytes_of[movable[0]]]
            value = min(enough, key=bytes_of.__getitem__, default=movable[0])
            chosen.add(value)
            excess, room = excess - bytes_of[value], room - bytes_of[value]
        return chosen

    def _peak_step(self, outcome: TimedOutcome, moved: TimedOutcome) -> int:
        """The step of an outcome's own schedule at which it peaks once some of its values are moved."""
        timeline, program = moved.timeline, outcome.program
        own = np.arange(outcome.problem.graph.num_nodes)
        if moved.problem is not outcome.problem:
            own = np.full(moved.problem.graph.num_nodes, -1)
            own[self._hosting.node] = np.arange(self._hosting.node.size)
        before = own[timeline.schedule[: timeline.peak_step + 1]]
        before = before[before >= 0]
        if not before.size:
            return 0
        runs = np.flatnonzero(program.steps == before[-1])
        return int(runs[min(int(np.count_nonzero(before == before[-1])), runs.size) - 1])

    def _waiting(self, outcome: TimedOutcome, step: int) -> list[int]:
        """Values that the forward has made and the backward has not read at a step, as they are made."""
        graph, program = outcome.problem.graph, outcome.program
        made = program.steps[: min(step + 1, program.backward_start)]
        read = {
            v for node in program.steps[program.backward_start : step + 1].tolist() for v in graph.values_read[node]
        }
        return [v for v in program.saved.tolist() if v not in read and graph.producer[v] in made]

    def _hosted(self, outcome: TimedOutcome, hosted: set[int], pace: Pace | None) -> TimedOutcome:
        """One outcome per schedule and choice."""
        key = id(outcome), tuple(sorted(hosted)), pace is not None
        if key not in self._made:
            problem = self._hosting.problem
            program = self._hosting.program(outcome.program, hosted, pace)
            timeline = problem.predicted(program)
            made = TimedOutcome(problem, program, timeline)
            self._made[key] = made.at_cost(made.cost + self._seconds_waited(made))
        return self._made[key]
