"""The fastest schedules of an unrolled program whose values may wait in the host's memory.

A copy over the link is free while it hides behind computation, and a link is slow beside a GPU: what it hides is a part
of what a program keeps. So the schedules are those without the host that keep too much, by about as much as the link
can carry meanwhile, and what they keep the longest is moved away until they fit.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxremat.backends.devices import Device
from jaxremat.planner.contract import Outcome
from jaxremat.planner.hosted import Pace
from jaxremat.planner.moving import MOST_TRIED, MovesValues
from jaxremat.planner.timed import TimedOutcome, by_peak, fastest, fastest_within
from jaxremat.planner.transfers import require_link, transfers_of
from jaxremat.trace.primal import Primal
from jaxremat.trace.round_trips import HOST, ON_HOST_OUTSIDE


class TimedTransferPlanner(MovesValues):
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
        most_bytes = np.inf if host_budget_bytes is None else host_budget_bytes
        over_mesh = any(sharding is not None for sharding in primal.shardings)  # of which rows would join axes
        super().__init__(primal, device, (HOST.form if over_mesh else ON_HOST_OUTSIDE,), most_bytes)

    def fit(self, replayed_bytes: int) -> TimedOutcome:
        """The fastest outcome whose predicted peak is within a number of bytes, or the one with the smallest peak."""
        return fastest_within([self.own.fit(replayed_bytes), *self._with_host(replayed_bytes)], replayed_bytes)

    def least(self) -> Sequence[TimedOutcome]:
        """Outcomes of small predicted peak, the smallest first, but for the first one without the host."""
        own = list(self.own.least())
        moved = [self._moved(outcome, 0) for outcome in (self.plain, *own[:MOST_TRIED])]
        return [own[0], *sorted([*own[1:], *moved], key=by_peak)]

    def near_misses(self, best: Outcome, cost: float, peak_bytes: int) -> Sequence[Outcome]:
        """The fastest with the host and the fastest without, whichever the best is not: what barriers for copies take,
        and what runs again, is told apart by what is compiled."""
        fastest_of_each = (self.own.fit(peak_bytes), fastest(self._with_host(peak_bytes), peak_bytes))
        return [outcome for outcome in fastest_of_each if outcome not in (None, best)]

    def _with_host(self, peak_bytes: int) -> list[TimedOutcome]:
        """Outcomes that would keep too much, were it not on the host."""
        best = self.own.fit(peak_bytes)
        return [self._moved(outcome, peak_bytes) for outcome in self._worth_a_try(best, peak_bytes)]

    def _seconds_waited(self, moved: TimedOutcome) -> float:
        return transfers_of(moved, self.device).exposed_seconds

    def _worth_a_try(self, best: TimedOutcome, peak_bytes: int) -> list[TimedOutcome]:
        """Outcomes that keep too much, and would be faster than the best with what is too much on the host."""
        rate = self.device.sustained_host_bytes_per_second
        assert rate  # checked before
        hidden_bytes = rate * min(self._seconds_of_halves(self.plain))
        self.own.fit(peak_bytes + int(hidden_bytes))

        def seconds(outcome: TimedOutcome) -> float:
            return outcome.cost + 2 * max(outcome.peak_bytes - peak_bytes - hidden_bytes, 0) / rate

        most = best.cost if best.peak_bytes <= peak_bytes else np.inf
        too_large = sorted((each for each in self.own.whole_range if each.peak_bytes > peak_bytes), key=seconds)
        faster = [outcome for outcome in too_large if seconds(outcome) < most][:MOST_TRIED]
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
