"""The cheapest that fits when it is compiled, or the error that says what is the smallest."""

from __future__ import annotations

import itertools

from jaxremat.base.errors import BudgetError, TargetError
from jaxremat.planner.contract import Outcome
from jaxremat.planner.correction import correct
from jaxremat.planner.schedules import SchedulePlanner
from jaxremat.planning.budget_error import refusal
from jaxremat.planning.compilations import Compilations
from jaxremat.planning.fastest_search import FastestSearch
from jaxremat.planning.least_search import LeastSearch
from jaxremat.planning.permitted_search import PermittedSearch
from jaxremat.planning.predicted_search import PredictedSearch, seconds_of
from jaxremat.planning.subject import Subject

_MOST_COMPILATIONS = 4  # two learn how far the prediction is off, others halve what is left; benchmarks/constants.py


class CompiledSearch:
    """What fits in a number of bytes, as compiled.

    Args:
      subject: what is planned.
      compilations: its outcomes as compiled.
      predicted: what is predicted to fit.
      least: what is small.
    """

    def __init__(
        self, subject: Subject, compilations: Compilations[Outcome], predicted: PredictedSearch, least: LeastSearch
    ) -> None:
        self._subject = subject
        self._planner = subject.planner
        self._compilations = compilations
        self._predicted = predicted
        self._least = least
        self._fastest = FastestSearch(self._planner, compilations)
        self._permitted = PermittedSearch(predicted.permitted, seconds_of, compilations, self._planner.plain)
        without = subject.unpermitted
        self._unpermitted = CompiledSearch(without, compilations, predicted.unpermitted, least) if without else None

    def within(self, limit: int) -> Outcome:
        """The cheapest outcome whose compiled peak is within the limit.

        Raises:
          BudgetError: if there is none. A budget far below all predictions, where these are trusted, is refused after
            one compilation; one below what arguments and results take, after that of the program as written, too.
        """
        refuses = self._subject.request.refuses
        is_hopeless = self._predicted.is_hopeless(limit) or self.is_below_held(limit)
        if not is_hopeless and (found := self.fitting(limit)):
            return self._fastest.without_waiting(found, limit)
        least = self._least.quickly() if is_hopeless and refuses else self._least.compiled(limit)
        if least.peak_bytes > limit and refuses:
            raise self._refusal(least.candidate, least.peak_bytes, limit)
        return self._fastest.without_waiting(least.candidate, limit)

    def is_below_held(self, limit: int) -> bool:
        """Whether a budget is below what the arguments and results of the program take, as compiled."""
        try:
            plain = self._planner.plain
            return self._predicted.is_below_held(limit) and limit < self._compilations.report(plain).held_bytes
        except TargetError:
            return False

    def fitting(self, limit: int) -> Outcome | None:
        """The cheapest outcome whose compiled peak is within the limit, of those that are predicted to be; None where
        none is. With a permission, what is found without it, unless something else is faster as compiled."""
        if self._unpermitted is None:
            return self._fitting(limit)
        own = None if self._unpermitted._predicted.is_hopeless(limit) else self._unpermitted.fitting(limit)
        return self._permitted.beside(own, limit) if own else self._fitting(limit)

    def _fitting(self, limit: int) -> Outcome | None:
        """The cheapest of the planner's own."""
        predicts_time = self._planner.traits.predicts_time
        if predicts_time and (fastest := self._fastest.within(limit)):
            return fastest

        def propose(aim: int) -> Outcome:
            predicted = self._predicted.within(aim)
            return (predicted.best or predicted.smallest).candidate

        correction = correct(
            propose,
            self._compilations.measure,
            limit,
            most_trials=_MOST_COMPILATIONS,
            first_aim=self._learnt_at_worst(limit) if predicts_time else limit,
            expected=lambda outcome: outcome.peak_bytes,
        )
        if correction.best is None:
            return None
        best = correction.best.candidate
        left = _MOST_COMPILATIONS - correction.trials
        for outcome in itertools.islice(self._planner.near_misses(best, best.cost, limit), left):
            if outcome.cost < best.cost and self._compilations.fits(outcome, limit):
                best = outcome
        return best

    def _learnt_at_worst(self, limit: int) -> int:
        """What is predicted of a program that takes the limit, by the prediction that was the furthest too low; the
        limit at most."""
        tried = [trial.candidate for trial in self._compilations.trials if trial.candidate is not self._planner.plain]
        return min([limit, *(int(self._compilations.learnt_bytes(outcome, limit)) for outcome in tried)])

    def _refusal(self, smallest: Outcome, peak_bytes: int, limit: int) -> BudgetError:
        """The error for this limit; where the form cannot express everything, with what another one would need."""
        request = self._subject.request
        others = () if request.emit == "schedule" else SchedulePlanner(self._subject.primal, request.device).least()
        other_bytes = min((outcome.peak_bytes for outcome in others), default=None)
        return refusal(smallest, peak_bytes, limit, schedule_bytes=other_bytes, may_chunk="chunk" in request.allow)
