"""The fastest that fits when it is compiled, of a planner that predicts time: few are compiled, and each says where the
next one should be looked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from jaxremat.planner.contract import Outcome, Planner
from jaxremat.planner.correction import CLOSE_ENOUGH
from jaxremat.planning.compilations import Compilations

_UNUSED = 0.05  # of the budget: about as far as predictions for GPUs are off in the median, 4.5 %: prediction.md


@dataclasses.dataclass(frozen=True, eq=False)
class FastestSearch:
    """What is fast in a number of bytes.

    Attributes:
      planner: what proposes, and predicts time.
      compilations: its outcomes as compiled.
    """

    planner: Planner
    compilations: Compilations[Outcome]

    def within(self, limit: int) -> Outcome | None:
        """The fastest, by the roofline of what was compiled, of the few that are predicted to be; None where none of
        them fits.

        Each compilation teaches where the next one should look. It is over with one that just fits; after two, where
        one fits and leaves few bytes unused; after three in any case."""
        compiled = self.compilations
        tried = [self.planner.fit(limit)]
        if limit < min(compiled.report(tried[0]).peak_bytes, tried[0].peak_bytes):
            return None
        if not compiled.fits(tried[0], limit, unused=CLOSE_ENOUGH):
            tried.append(self._likelier(tried, limit))
        tried.extend(self._near_misses(compiled.fastest_within(tried, limit) or tried[0], limit))
        best = compiled.fastest_within(tried, limit)
        if best is None or not compiled.fits(best, limit, unused=_UNUSED):
            tried.append(self._likelier(tried, limit))
        return compiled.fastest_within(tried, limit)

    def without_waiting(self, outcome: Outcome, limit: int) -> Outcome:
        """An outcome; where it waits, the faster, as compiled, of it and the fastest of the smallest that does not wait
        and fits as well: all that can wait on a host is small, and waits. Each that is compiled and does not fit
        teaches which of the others may."""
        if not self._waits(outcome):
            return outcome
        compiled, tried = self.compilations, [outcome]
        learnt_bytes = compiled.learnt_bytes(outcome, limit)
        for each in sorted(self.planner.least(), key=lambda each: each.cost):
            if self._waits(each) or each.peak_bytes > learnt_bytes:
                continue
            tried.append(each)
            if compiled.fits(each, limit):
                break
            learnt_bytes = (1 - CLOSE_ENOUGH) * compiled.learnt_bytes(each, limit)
        return compiled.fastest_within(tried, limit) or outcome

    def _near_misses(self, best: Outcome, limit: int) -> Iterator[Outcome]:
        """What the planner would have compiled as well, of all that is predicted to be faster than the best is as
        predicted or as compiled: the first, and each other that may fit by what the one before says, where nothing that
        fits is as fast as it is predicted to be."""
        compiled, known = self.compilations, [best]
        slowest = max(best.cost, compiled.seconds(best))
        for outcome in self.planner.near_misses(best, slowest, limit):
            if len(known) > 1 and not self._may_be_faster(outcome, known, limit):
                return
            yield outcome
            known.append(outcome)

    def _may_be_faster(self, outcome: Outcome, known: Sequence[Outcome], limit: int) -> bool:
        """Whether an outcome is predicted to be faster than the fastest that is known to fit, and to fit as well, were
        its prediction as far off as that of the last one."""
        compiled, last = self.compilations, known[-1]
        fastest = compiled.fastest_within(known, limit)
        is_faster = fastest is None or outcome.cost < compiled.seconds(fastest)
        fits = compiled.fits(last, limit)
        return is_faster and (fits or outcome.peak_bytes <= (1 + CLOSE_ENOUGH) * compiled.learnt_bytes(last, limit))

    def _waits(self, outcome: Outcome) -> bool:
        """Whether an outcome takes more than running everything twice: recomputing is not all that takes time."""
        return self.planner.traits.predicts_time and outcome.cost > 2 * self.planner.plain.cost

    def _likelier(self, tried: Sequence[Outcome], limit: int) -> Outcome:
        """What should just fit, were predictions as far off as that of the one which came nearest to the limit, and a
        little less where none fits; where it was tried, what should take a little too much: single predictions are off.
        """
        compiled = self.compilations
        nearest = min(tried, key=lambda outcome: abs(compiled.report(outcome).peak_bytes - limit))
        learnt_bytes = compiled.learnt_bytes(nearest, limit)
        if not compiled.fastest_within(tried, limit):
            return self.planner.fit(int((1 - CLOSE_ENOUGH) * learnt_bytes))
        found = self.planner.fit(int(learnt_bytes))
        return (
            found if found not in tried else self.planner.fit(int((1 + self.planner.traits.peak_doubt) * learnt_bytes))
        )
