"""The cheapest that fits, by prediction alone."""

from __future__ import annotations

import functools

from jaxremat.compiled.compile import MemoryReport
from jaxremat.planner.contract import TOLD_APART, Outcome
from jaxremat.planner.correction import Correction, correct
from jaxremat.planning.subject import Subject

_MOST_PREDICTIONS = 6  # two learn by how much the replay is off, the others halve what is left; benchmarks/constants.py
_BEYOND_DOUBT = 1.6  # of a limit: a LLaMA was predicted at half above what it took; benchmarks/constants.py


class PredictedSearch:
    """What is predicted to fit in a number of bytes, and what is not.

    Args:
      subject: what is planned.
    """

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._planner = subject.planner

    def within(self, limit: int) -> Correction[Outcome, None]:
        """The fastest outcome whose predicted peak is within the limit, without a permission where that is as fast."""
        found = self._within(limit)
        return _unless_it_pays(self.unpermitted.within(limit), found) if self._subject.unpermitted else found

    @functools.cached_property
    def unpermitted(self) -> PredictedSearch:
        """The search with one permission less, or this one where there is none."""
        return PredictedSearch(self._subject.unpermitted) if self._subject.unpermitted else self

    def permitted(self, limit: int) -> Outcome | None:
        """The fastest outcome whose predicted peak is within the limit, where it takes the permission."""
        without = self.unpermitted.within(limit)
        found = _unless_it_pays(without, self._within(limit))
        return found.best.candidate if found.best and found is not without else None

    def _within(self, limit: int) -> Correction[Outcome, None]:
        """The fastest of the planner's own: one that needs no new memory may be it."""
        found = self._cheapest_within(limit)
        if found.best is None:
            return found
        seconds = seconds_of(found.best.candidate, None)
        waits = seconds > found.best.candidate.cost and limit > self._reused_bytes
        if not waits or self._planner.fit(self._reused_bytes).cost >= seconds:
            return found
        smaller = self._within_reused.best
        return self._within_reused if smaller and seconds_of(smaller.candidate, None) < seconds else found

    def is_hopeless(self, limit: int) -> bool:
        """Whether a limit is so far below what the smallest schedule is predicted to take that the compiler need be
        asked of that one alone, where predictions are known to be near: of whole programs on one device."""
        backend = self._subject.request.device.backend
        trusts = self._subject.request.verify == "replay" and self._subject.is_usual
        if not (trusts and backend.predicts_closely):
            return False
        smallest = min(self._planner.least(), key=lambda outcome: outcome.replayed_bytes)
        return smallest.peak_bytes > _BEYOND_DOUBT * limit

    def is_below_held(self, limit: int) -> bool:
        """Whether a limit is below what the arguments and results of the program take."""
        return limit < self._resident_bytes

    def _cheapest_within(self, limit: int) -> Correction[Outcome, None]:
        def measure(outcome: Outcome) -> tuple[int, None]:
            return outcome.peak_bytes, None

        plain, predicts_time = self._planner.plain, self._planner.traits.predicts_time
        correction = correct(
            self._planner.fit,
            measure,
            limit,
            most_trials=1 if predicts_time else _MOST_PREDICTIONS,
            first_aim=limit if predicts_time else max(1, limit + plain.replayed_bytes - plain.peak_bytes),
            expected=lambda outcome: outcome.replayed_bytes,
        )
        if correction.best or self.is_hopeless(limit):
            return correction
        return correction.with_more(self._planner.least(), measure, limit)

    @property
    def _resident_bytes(self) -> int:
        return self._planner.plain.problem.graph.resident_bytes

    @property
    def _reused_bytes(self) -> int:
        """The largest peak of a program that runs in memory which it gave back before."""
        return self._resident_bytes + (self._subject.request.device.backend.reused_bytes or 0)

    @functools.cached_property
    def _within_reused(self) -> Correction[Outcome, None]:
        return self._cheapest_within(self._reused_bytes)


def _unless_it_pays(
    without: Correction[Outcome, None], permitted: Correction[Outcome, None]
) -> Correction[Outcome, None]:
    """What is found without a permission, unless what is found with it is faster by more than can be told apart."""
    if without.best is None and permitted.best is None:
        return min(without, permitted, key=lambda found: found.smallest.peak_bytes)
    if without.best is None or permitted.best is None:
        return without if without.best else permitted
    pays = TOLD_APART * seconds_of(permitted.best.candidate, None) < seconds_of(without.best.candidate, None)
    return permitted if pays else without


def seconds_of(outcome: Outcome, report: MemoryReport | None) -> float:
    """Time of one run: by the roofline of what was compiled, where there is one, or else predicted."""
    if report and report.seconds:
        return report.seconds
    temp_bytes = report.temp_bytes if report else outcome.peak_bytes - outcome.problem.graph.resident_bytes
    return outcome.cost + outcome.problem.device.first_touch_seconds(temp_bytes)
