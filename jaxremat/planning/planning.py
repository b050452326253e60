"""Plans of one program, for any number of budgets."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from jaxremat.backends.memory import usable_bytes
from jaxremat.base.budget import LEAST, Budget, budget_bytes, format_bytes, keep_bytes
from jaxremat.base.errors import ArgumentError, PlanningInterrupted, TargetError
from jaxremat.base.stopwatch import Stopwatch
from jaxremat.chunk.choice import Chunked
from jaxremat.planner.contract import Outcome, left_behind, saving
from jaxremat.planning.baseline import Baseline
from jaxremat.planning.compilations import Compilations
from jaxremat.planning.compiled_search import CompiledSearch
from jaxremat.planning.least_search import LeastSearch
from jaxremat.planning.plan import Plan
from jaxremat.planning.predicted_search import PredictedSearch
from jaxremat.planning.record import record
from jaxremat.planning.request import Request
from jaxremat.planning.subject import Subject

logger = logging.getLogger("jaxremat")


class Planning:
    """Plans of one program: it is traced once, and each of its outcomes is compiled at most once.

    Args:
      request: what is planned, and how.
      chunks: the parts that run in chunks; overhead and baseline are told against the program as it is written.
      written: the planning of the program as it is written, where that is another one.
    """

    def __init__(self, request: Request, chunks: Sequence[Chunked] = (), written: Planning | None = None) -> None:
        self.request = request
        self._clock = Stopwatch(request.trace_seconds)
        with self._clock.running():
            self._subject = Subject.of(request, tuple(chunks))
            self.planner = self._subject.planner
            self._compilations = Compilations(self._subject.compiled, self._clock, self._subject.is_as_written)
            self.baseline = Baseline(self.planner.plain, self._compilations, request.verify)
        self._written = written.baseline if written else self.baseline
        self._predicted = PredictedSearch(self._subject)
        self._least = LeastSearch(self._subject, self._compilations)
        self._compiled = CompiledSearch(self._subject, self._compilations, self._predicted, self._least)

    def in_chunks(self, chunks: Sequence[Chunked]) -> Planning:
        """The planning of the same program with some parts in chunks."""
        return Planning(self.request, chunks, self)

    def plan(self, budget: Budget) -> Plan:
        """The cheapest plan within a budget.

        Raises:
          BudgetError: if nothing that was found fits.
          PlanningInterrupted: in the place of a KeyboardInterrupt, with the best plan so far.
        """
        try:
            with self._clock.running():
                return self._planned(budget)
        except KeyboardInterrupt:
            raise PlanningInterrupted(self._best_so_far(budget)) from None

    def keeping(self, keep: Budget) -> Plan:
        """The cheapest plan whose forward leaves no more than that to the backward, inputs aside.

        Args:
          keep: bytes, text, or a fraction of what the backward of the program as written reads.
        """
        saver = saving(self.planner)
        if saver is None:
            raise ArgumentError("keep=... decides schedules of the default search: emit='schedule' and solver='auto'")
        with self._clock.running():
            outcome = saver.leaving(keep_bytes(keep, left_behind(saver.plain)))
            return self._plan(outcome, outcome.peak_bytes)

    def fits_as_written(self, limit: int) -> bool:
        """Whether nothing has to be done; a program in chunks is compiled to know only if it is predicted to fit."""
        predicted = not self._subject.chunks or self.baseline.outcome.peak_bytes <= limit
        return self.planner.traits.may_leave_alone and predicted and self.baseline.peak_bytes <= limit

    def is_below_held(self, limit: int) -> bool:
        """Whether a budget is below what the arguments and results of the program take, as compiled."""
        return self._compiled.is_below_held(limit)

    def promise(self, limit: int) -> tuple[bool, float]:
        """To sort by: whether nothing is predicted to fit, then seconds of the cheapest or bytes of the smallest."""
        with self._clock.running():
            found = self._predicted.within(limit)
            return (False, found.best.candidate.cost) if found.best else (True, found.smallest.peak_bytes)

    def _planned(self, budget: Budget) -> Plan:
        compiles = self.request.verify == "compile"
        if budget == LEAST:
            return self._compiled_least() if compiles else self._predicted_least()
        limit = self._limit(budget, self.baseline.peak_bytes)
        if self.fits_as_written(limit):
            return self._plan(self.baseline.outcome, limit)
        return self._plan(self._compiled.within(limit), limit) if compiles else self._by_prediction(budget, limit)

    def _by_prediction(self, budget: Budget, limit: int) -> Plan:
        """The cheapest plan that is predicted to fit. A prediction alone refuses nothing: the compiler is asked before,
        and a fraction may then be one of what it says of the program as written."""
        if not self._predicted.is_below_held(limit) and (best := self._predicted.within(limit).best):
            return self._plan(best.candidate, limit)
        if not self.request.refuses:
            return self._plan(self._least.predicted(), limit)
        logger.info("nothing is predicted to fit in %s; compiling to be sure", format_bytes(limit))
        try:
            if self._predicted.is_hopeless(limit):
                return self._plan(self._compiled.within(limit), limit)
            limit = max(limit, self._limit(budget, self.baseline.report.peak_bytes))
        except TargetError:
            return self._plan(self._least.predicted(), limit)
        fits = self.planner.traits.may_leave_alone and self.baseline.report.peak_bytes <= limit
        return self._plan(self.baseline.outcome if fits else self._compiled.within(limit), limit)

    def _predicted_least(self) -> Plan:
        least = self._least.predicted()
        return self._plan(least, least.peak_bytes)

    def _compiled_least(self) -> Plan:
        least = self._least.compiled()
        return self._plan(least.candidate, least.peak_bytes)

    def _best_so_far(self, budget: Budget) -> Plan | None:
        """The fastest plan that fits, of those that were compiled; the smallest where the least is wanted."""
        if not (smallest := self._compilations.smallest()):
            return None
        if budget == LEAST:
            return self._plan(smallest.candidate, smallest.peak_bytes)
        limit = self._limit(budget, self.baseline.report.peak_bytes)
        best = self._compilations.fastest_within([trial.candidate for trial in self._compilations.trials], limit)
        return self._plan(best, limit) if best else None

    def _limit(self, budget: Budget, plain_peak_bytes: int) -> int:
        return budget_bytes(budget, plain_peak_bytes, usable_bytes(self.request.device))

    def _plan(self, outcome: Outcome, limit: int) -> Plan:
        return record(
            self._subject,
            outcome,
            limit,
            compilations=self._compilations,
            baseline=self._written,
            clock=self._clock,
        )
