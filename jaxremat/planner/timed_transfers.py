"""The fastest schedules of an unrolled program whose values may wait in the host's memory.

A copy over the link is free while it hides behind computation, and a link is slow beside a GPU: what it hides is a part
of what a program keeps. So the schedules are those without the host that keep too much, by about as much as the link
can carry meanwhile, and what they keep the longest is moved away until they fit.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from jaxremat.backends.devices import Device
from jaxremat.planner.contract import Outcome, cheapest_within
from jaxremat.planner.decision import FlatFunction
from jaxremat.planner.hosted import Hosting, Pace
from jaxremat.planner.timed import TimedOutcome, TimedPlanner, by_peak, fastest
from jaxremat.planner.transfers import require_link, transfers_of
from jaxremat.trace.joint import Primal

_MOST_TRIED = 4  # outcomes that keep too much, a second each in programs of 1000 equations; benchmarks/constants.py
_MOST_ROUNDS = 6  # peaks at which more is moved: a bound, two or three are the rule; benchmarks/constants.py


class TimedTransferPlanner:
    """Schedules with and without the host, for any budget.

    Args:
      primal: a program without differentiable loops.
      device: what it runs on.
      host_budget_bytes: the most that may wait on the host; None for any amount.

    Raises:
      ArgumentError: for a device without a link to a host's memory.
    """

    def __init__(self, primal: Primal, device: Device, host_budget_bytes: int | None) -> None:
        require_link(device)
        self.device = device
        self.own = TimedPlanner(primal, device)
        self.traits = self.own.traits
        self.as_written: FlatFunction = primal.as_written
        self._most_bytes = np.inf if host_budget_bytes is None else host_budget_bytes
        self._made: dict[tuple[int, tuple[int, ...], bool], TimedOutcome] = {}

    @property
    def plain(self) -> TimedOutcome:
        """The program as it stands."""
        return self.own.plain

    def fit(self, replayed_bytes: int) -> TimedOutcome:
        """The fastest outcome whose predicted peak is within a number of bytes, or the one with the smallest peak."""
        return cheapest_within([self.own.fit(replayed_bytes), *self._with_host(replayed_bytes)], replayed_bytes)

    def least(self) -> Sequence[TimedOutcome]:
        """Outcomes of small predicted peak, the smallest first."""
        own = list(self.own.least())
        moved = [self._moved(outcome, 0) for outcome in (self.plain, *own[:_MOST_TRIED])]
        return sorted([*own, *moved], key=lambda outcome: (outcome.peak_bytes, outcome.cost))

    def near_misses(self, best: Outcome, peak_bytes: int) -> Sequence[Outcome]:
        """The fastest with the host and the fastest without, whichever the best is not: what barriers for copies take,
        and what runs again, is told apart by what is compiled."""
        fastest_of_each = (self.own.fit(peak_bytes), fastest(self._with_host(peak_bytes), peak_bytes))
        return [outcome for outcome in fastest_of_each if outcome not in (None, best)]

    def _with_host(self, peak_bytes: int) -> list[TimedOutcome]:
        """Outcomes that would keep too much, were it not on the host."""
        best = self.own.fit(peak_bytes)
        return [self._moved(outcome, peak_bytes) for outcome in self._worth_a_try(best, peak_bytes)]

    @functools.cached_property
    def _hosting(self) -> Hosting:
        return Hosting.of(self.own.primal, self.device)

    def _worth_a_try(self, best: TimedOutcome, peak_bytes: int) -> list[TimedOutcome]:
        """Outcomes that keep too much, and would be faster than the best with what is too much on the host."""
        rate = self.device.sustained_host_bytes_per_second
        assert rate  # checked before
        hidden_bytes = rate * min(self._seconds_of_halves(self.plain))
        self.own.fit(peak_bytes + int(hidden_bytes))

        def seconds(outcome: TimedOutcome) -> float:
            return outcome.cost + 2 * max(outcome.peak_bytes - peak_bytes - hidden_bytes, 0) / rate

        most = best.cost if best.peak_bytes <= peak_bytes else np.inf
        too_large = sorted((each for each in self.own.made if each.peak_bytes > peak_bytes), key=seconds)
        faster = [outcome for outcome in too_large if seconds(outcome) < most][:_MOST_TRIED]
        return faster if np.isfinite(most) else [*faster, self.plain]

    def _seconds_of_halves(self, outcome: TimedOutcome) -> tuple[float, float]:
        """(forward, backward) of an outcome."""
        node_seconds = outcome.problem.graph.costs[outcome.program.steps]
        forward = node_seconds[: outcome.program.backward_start].sum() / max(node_seconds.sum(), 1e-30)
        return outcome.cost * forward, outcome.cost * (1 - forward)

    def _moved(self, outcome: TimedOutcome, peak_bytes: int) -> TimedOutcome:
        """An outcome with values on the host until its peak fits, or nothing more at its peak can go there; copies hide
        behind computation where there is room for what they copy."""
        hiding = self._moved_at(outcome, peak_bytes, self._pace(outcome))
        if hiding.peak_bytes <= peak_bytes:
            return hiding
        return min(hiding, self._moved_at(outcome, peak_bytes, None), key=by_peak)

    def _pace(self, outcome: TimedOutcome) -> Pace:
        rate = self.device.sustained_host_bytes_per_second
        assert rate  # checked before
        seconds = outcome.problem.graph.costs[outcome.program.steps]
        clock = np.concatenate([[0.0], np.cumsum(seconds) * outcome.cost / max(seconds.sum(), 1e-30)])
        return Pace(clock, rate)

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
        movable = [v for v in waiting if v in bytes_of and v not in hosted and not is_output[v]]
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
        is_late = outcome.problem.graph.backward[before].any()
        first = program.backward_start if is_late else 0
        return first + int(np.flatnonzero(program.steps[first:] == before[-1])[0]) if before.size else 0

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
            self._made[key] = made.at_cost(made.cost + transfers_of(made, self.device).exposed_seconds)
        return self._made[key]
