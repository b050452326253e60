"""Programs with loops, judged by the time and the peak of what is emitted, under the target's fusion.

In a loop, what is kept has to be stacked: written, and read again, where a kernel would have made it on its way. So
more recomputation may well take less time, and the cheapest price at which a program fits is not the fastest. Decisions
are made along the whole range of prices; each is emitted and timed, and the fastest whose predicted peak fits is the
answer.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Sequence

from jaxremat.backends.devices import Device
from jaxremat.loops.find import with_masks_before_loops
from jaxremat.planner.contract import TOLD_APART, Outcome, Traits
from jaxremat.planner.schedules import ScheduleOutcome, SchedulePlanner
from jaxremat.planner.timed import PEAK_DOUBT, TimedOutcome, by_peak, fastest, fastest_within
from jaxremat.trace.primal import Primal
from jaxremat.trace.round_trips import LOSSLESS

_RUNG = 0.9  # of the aim before: with .85 a recurrence on an H200 took 2 % longer in .3 of its peak than in .27
_BODY_DOUBT = 0.15  # where XLA finds an order of less memory: 14 % in aot/test_planned_loops; benchmarks/constants.py
_REPLAYED_DOUBT = 1.1  # of replayed times: on a v5e, a GPT with checkpoints over the fastest 1.30, compiled 1.19
_TIMED_DOUBT = 1.05  # of kernels' times: a GPT predicted at 1.015 of the fastest took .96; benchmarks/constants.py


class TimedLoopPlanner:
    """The fastest schedules of a program with differentiable loops.

    Args:
      primal: the program.
      device: what its seconds and bytes are for.
      storages: forms in which values may wait for the backward.
    """

    def __init__(self, primal: Primal, device: Device, storages: tuple[str, ...] = LOSSLESS) -> None:
        at_best = with_masks_before_loops(primal) if device.backend.rows_in_one_kernel else primal
        self._schedules = SchedulePlanner(at_best, device, storages)
        self._smaller = () if at_best is primal else (SchedulePlanner(primal, device, storages),)
        self._timed: dict[int, tuple[ScheduleOutcome, TimedOutcome]] = {}

    @property
    def traits(self) -> Traits:
        return Traits(predicts_time=True, peak_doubt=PEAK_DOUBT)

    @functools.cached_property
    def plain(self) -> TimedOutcome:
        """The program as it stands."""
        return self._at_its_time(self._schedules.plain)

    def fit(self, replayed_bytes: int) -> TimedOutcome:
        """The fastest outcome whose predicted peak is within a number of bytes, or the one with the smallest peak."""
        for aim in self._aims(replayed_bytes):
            self._at_its_time(self._schedules.fit(aim))
        if not self._is_fastest_of_all(fastest(self._found, replayed_bytes)):
            for aim in self._rungs_below(replayed_bytes):
                self._at_its_time(self._schedules.fit(aim))
        best = fastest_within(self._found, replayed_bytes)
        if best.peak_bytes > replayed_bytes:
            best = fastest_within(self.least(), replayed_bytes)
        if best.peak_bytes > replayed_bytes:
            return best
        return min((outcome for outcome in self._found if outcome.cost <= TOLD_APART * best.cost), key=by_peak)

    @property
    def _found(self) -> list[TimedOutcome]:
        return [outcome for _, outcome in self._timed.values()]

    def leaving(self, saved_bytes: int) -> TimedOutcome:
        """The cheapest outcome whose forward leaves at most so many bytes to the backward, inputs aside."""
        return self._at_its_time(self._schedules.leaving(saved_bytes))

    def least(self) -> Sequence[TimedOutcome]:
        """Outcomes of small predicted peak, the smallest first."""
        return self._least

    def near_misses(self, best: Outcome, cost: float, peak_bytes: int) -> Iterable[Outcome]:
        """What checkpoints around every iteration do, where they may be faster and fit all the same: compilers are at
        their best on the simplest loops. Then the same with masks made inside, where they take no memory."""
        for schedules in (self._schedules, *self._smaller):
            by_hand = self._at_its_time(schedules.checkpointed)
            doubt = _TIMED_DOUBT if schedules.device.backend.barrier_parts else _REPLAYED_DOUBT
            may_be_faster = by_hand.cost < doubt * cost
            may_fit = by_hand.peak_bytes <= (1 + _BODY_DOUBT) * peak_bytes
            if may_be_faster and may_fit:
                yield by_hand

    @functools.cached_property
    def _least(self) -> Sequence[TimedOutcome]:
        return sorted(map(self._at_its_time, self._schedules.least()), key=by_peak)

    @functools.cached_property
    def _range(self) -> Sequence[tuple[ScheduleOutcome, TimedOutcome]]:
        """The program as it stands, and with its loops as decided at every price."""
        each = [self._schedules.plain, *self._schedules.at_all_prices()]
        return [(outcome, self._at_its_time(outcome)) for outcome in each]

    def _is_fastest_of_all(self, best: TimedOutcome | None) -> bool:
        """Whether no price of loops makes the program faster, whatever it takes then."""
        least_seconds = min(timed.cost for _, timed in self._range)
        return best is not None and best.cost <= TOLD_APART * least_seconds

    def _rungs_below(self, peak_bytes: int) -> Iterable[int]:
        """Falling aims, the same whatever is asked for: in loops what takes fewer bytes may take less time, too."""
        plain, smallest = self._schedules.plain.replayed_bytes, min(timed.peak_bytes for _, timed in self._range)
        heights = (int(plain * _RUNG**k) for k in itertools.count(1))
        return [aim for aim in itertools.takewhile(lambda aim: aim > smallest, heights) if aim < peak_bytes]

    def _aims(self, peak_bytes: int) -> Iterable[int]:
        """Replayed bytes of what is predicted to take so many: the two differ by what the nearest outcomes say."""
        above = [pair for pair in self._range if pair[1].peak_bytes > peak_bytes]
        below = [pair for pair in self._range if pair[1].peak_bytes <= peak_bytes]
        near = [*sorted(above, key=_predicted)[:1], *sorted(below, key=_predicted)[-1:]]
        return {replayed.replayed_bytes + peak_bytes - predicted.peak_bytes for replayed, predicted in near}

    def _at_its_time(self, outcome: ScheduleOutcome) -> TimedOutcome:
        """One outcome per schedule, so that what was compiled of it is not asked for twice."""
        if id(outcome) not in self._timed:
            timed = TimedOutcome(outcome.problem, outcome.program, outcome.timeline)
            self._timed[id(outcome)] = outcome, timed
        return self._timed[id(outcome)][1]


def _predicted(pair: tuple[ScheduleOutcome, TimedOutcome]) -> int:
    return pair[1].peak_bytes
