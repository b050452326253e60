"""The smallest that is found, by prediction and as compiled."""

from __future__ import annotations

from collections.abc import Sequence

from jaxremat.compiled.compile import MemoryReport
from jaxremat.planner.contract import Outcome, left_behind, saving
from jaxremat.planner.correction import CLOSE_ENOUGH, Trial, smallest
from jaxremat.planner.schedules import apart
from jaxremat.planning.compilations import Compilations
from jaxremat.planning.subject import Subject

_MOST_LEAST = 6  # compilations: the smallest peak is wanted, not the smallest prediction; benchmarks/constants.py


class LeastSearch:
    """What is small.

    Args:
      subject: what is planned.
      compilations: its outcomes as compiled.
    """

    def __init__(self, subject: Subject, compilations: Compilations[Outcome]) -> None:
        self._unpermitted = LeastSearch(subject.unpermitted, compilations) if subject.unpermitted else None
        self._planner = subject.planner
        self._is_block = not subject.request.refuses
        self._compilations = compilations

    def predicted(self) -> Outcome:
        """The outcome with the smallest predicted peak that is known; of a block, what leaves nothing behind is one."""
        saver = saving(self._planner) if self._is_block else None
        leaving_least = [saver.leaving(0)] if saver else []
        own = [self._unpermitted.predicted()] if self._unpermitted else []
        return min([*own, *leaving_least, *self._planner.least(), self._planner.plain], key=self._size)

    def compiled(self, wanted_bytes: int | None = None) -> Trial[Outcome, MemoryReport]:
        """The outcome with the smallest compiled peak that is found, or one within some bytes.

        The smallest by prediction, and the first of the planner's, are compiled whatever is wanted: who asks for a peak
        that a refusal named finds it again. Of others that are predicted alike one is compiled: all would be as far
        off. Of a block, the smallest by prediction alone is compiled.
        """
        if self._is_block:
            return self._compilations.trial(self.predicted())
        return self._permitted(self._unpermitted, wanted_bytes) if self._unpermitted else self._own(wanted_bytes)

    def _permitted(self, without: LeastSearch, wanted_bytes: int | None) -> Trial[Outcome, MemoryReport]:
        """What is found without a permission, or something smaller with it, by compiling half as much again."""
        own = without.compiled(wanted_bytes)
        others = [each for each in self._planner.least() if each not in without._planner.least()]
        candidates = [own.candidate, *apart(sorted(others, key=self._size), self._size)]
        return self._smallest(candidates, 1, 1 + _MOST_LEAST // 2, wanted_bytes)

    def _own(self, wanted_bytes: int | None) -> Trial[Outcome, MemoryReport]:
        first, *others = self._planner.least()
        leading, *rest = self._smallest_first([first, *others])
        in_order = dict.fromkeys([leading, first, *apart(rest, self._size)])
        return self._smallest(list(in_order), 2, _MOST_LEAST, wanted_bytes)

    def quickly(self) -> Trial[Outcome, MemoryReport]:
        """What is predicted to be the smallest, compiled; or the program as written where that takes less."""
        written = self._planner.plain
        leading, *_ = self._smallest_first([*self._planner.least(), written])
        least = self._compilations.trial(leading)
        if least.peak_bytes <= written.peak_bytes and not self._compilations.known(written):
            return least
        return min(least, self._compilations.trial(written), key=lambda trial: trial.peak_bytes)

    def _smallest_first(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        """In the order of predicted peaks; of those that are next to the smallest, the smallest by replay leads."""
        alike_bytes = (1 + CLOSE_ENOUGH) * min(map(self._size, outcomes))
        alike = [outcome for outcome in outcomes if self._size(outcome) <= alike_bytes]
        leading = min(alike, key=lambda outcome: outcome.replayed_bytes)
        return sorted(outcomes, key=lambda outcome: (outcome is not leading, self._size(outcome)))

    def _smallest(
        self, candidates: Sequence[Outcome], sure: int, most_trials: int, wanted_bytes: int | None = None
    ) -> Trial[Outcome, MemoryReport]:
        return smallest(
            candidates,
            self._compilations.measure,
            known=[self._compilations.trial(self._planner.plain)],
            sure=sure,
            most_trials=most_trials,
            expected=lambda outcome: outcome.peak_bytes,
            wanted_bytes=wanted_bytes,
        )

    def _size(self, outcome: Outcome) -> int:
        """The peak; of a block, beside what an equal one before it left behind: a program is made of several."""
        return outcome.peak_bytes + (left_behind(outcome) if self._is_block else 0)
