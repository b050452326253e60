"""The fastest schedules of an unrolled program whose values may wait in fewer bytes: a byte per number, or projections.

To round a value takes a kernel that reads it, and to widen it another: that is cheaper than most recomputation, and
dearer than to keep it. So the schedules are those that keep too much, with as much of it packed as has to be.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

from jaxremat.backends.devices import Device
from jaxremat.planner.contract import Outcome
from jaxremat.planner.moving import MOST_TRIED, MovesValues
from jaxremat.planner.timed import TimedOutcome, by_peak, fastest_within
from jaxremat.trace import jaxpr as jaxprs
from jaxremat.trace.primal import Primal
from jaxremat.trace.round_trips import IN_BYTES

_MOST_FAILING = 12  # what packing takes besides is told by predictions alone; benchmarks/constants.py


class TimedBytesPlanner(MovesValues):
    """Schedules with and without packed values, for any budget.

    Args:
      primal: a program without differentiable loops.
      device: what it runs on.
      forms: names of storages, of which the first that takes a value packs it.
    """

    def __init__(self, primal: Primal, device: Device, forms: Sequence[str] = IN_BYTES) -> None:
        super().__init__(primal, device, forms)

    def fit(self, replayed_bytes: int) -> TimedOutcome:
        """The fastest outcome whose predicted peak is within a number of bytes, or the one with the smallest peak."""
        best = self.own.fit(replayed_bytes)
        packed = (self._packed(outcome, replayed_bytes) for outcome in self._too_large(best, replayed_bytes))
        return fastest_within([best, *_until_some_fit(packed, replayed_bytes)], replayed_bytes)

    def least(self) -> Sequence[TimedOutcome]:
        """Outcomes of small predicted peak, the smallest first, but for the first one that packs nothing."""
        own = list(self.own.least())
        packed = [self._packed(outcome, 0) for outcome in own[:MOST_TRIED]]
        return [own[0], *sorted([*own[1:], *packed], key=by_peak)]

    def near_misses(self, best: Outcome, cost: float, peak_bytes: int) -> Sequence[Outcome]:
        """None: the prediction tells schedules apart well enough."""
        return ()

    def _packed(self, outcome: TimedOutcome, peak_bytes: int) -> TimedOutcome:
        return self._moved_at(outcome, peak_bytes, None)

    def _too_large(self, best: TimedOutcome, peak_bytes: int) -> list[TimedOutcome]:
        """Outcomes that keep too much, but no more than bytes make up for: those first that should be the fastest."""
        bytes_of = self._hosting.bytes_of

        def seconds(outcome: TimedOutcome) -> float:
            return outcome.cost + self._seconds_per_byte * (outcome.peak_bytes - peak_bytes)

        def may_fit(outcome: TimedOutcome) -> bool:
            freed_bytes = sum(bytes_of.get(value, 0) for value in outcome.program.saved.tolist())
            return 0 < outcome.peak_bytes - peak_bytes <= freed_bytes

        known = dict.fromkeys((*self.own.least(), *self.own.made))
        faster = [each for each in known if seconds(each) < best.cost or best.peak_bytes > peak_bytes]
        return sorted(filter(may_fit, faster), key=seconds)[:_MOST_FAILING]

    @functools.cached_property
    def _seconds_per_byte(self) -> float:
        """What it takes to free a byte: a value is read and packed, and unpacked and written."""
        trips = self._hosting.trips
        moved = sum(2 * jaxprs.size_bytes(v) for trip in trips for v in (trip.source, *trip.waiting))
        return moved / max(sum(self._hosting.bytes_of.values()), 1) / self.device.bandwidth_bytes_per_second


def _until_some_fit(outcomes: Iterable[TimedOutcome], peak_bytes: int) -> list[TimedOutcome]:
    """Outcomes in the order in which they are predicted, until one of the first few fits, or the first one after."""
    tried: list[TimedOutcome] = []
    for outcome in outcomes:
        tried.append(outcome)
        if len(tried) >= MOST_TRIED and any(each.peak_bytes <= peak_bytes for each in tried):
            break
    return tried
