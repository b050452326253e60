"""From a traced step and a budget to a plan: search, emit, compile, correct."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from jaxremat.backends.devices import Device
from jaxremat.backends.memory import usable_bytes
from jaxremat.base.budget import DEVICE, LEAST, Budget, budget_bytes, format_bytes, parse_budget
from jaxremat.compiled.compile import MemoryReport
from jaxremat.planner.correction import Trial, correct
from jaxremat.step.outcome import Outcome
from jaxremat.step.plan import StepPlan
from jaxremat.step.planner import ProgramPlanner
from jaxremat.step.program import StepProgram
from jaxremat.step.refusal import refusal, refusal_at_once
from jaxremat.step.transfers import HostPlanner

logger = logging.getLogger("jaxremat")

StepPlanner = ProgramPlanner | HostPlanner

_MOST_COMPILATIONS = 6  # as in planning: two learn, the others halve
_MOST_LEAST = 3  # candidates of small predicted peak that are compiled for "least"

Compile = Callable[[Callable[[Sequence[Any]], list[Any]]], MemoryReport]
"""Compiles the step as it is called, run as given from flat inputs to flat outputs."""


class StepPlanning:
    """Plans of one step for any number of budgets: it is compiled as written once.

    Args:
      program: the step.
      planner: what proposes.
      device: what it is planned for.
      compile: compiles it for that device; None where predictions are trusted.
      solver: the name of what searches.
    """

    def __init__(
        self, program: StepProgram, planner: StepPlanner, device: Device, compile: Compile | None, solver: str
    ) -> None:
        self.program = program
        self.planner = planner
        self.device = device
        self.solver = solver
        self._compile = compile
        self._spent_seconds = 0.0

    @functools.cached_property
    def plain(self) -> Outcome:
        """The step as written."""
        return self._timed(lambda: self.planner.plain)

    @functools.cached_property
    def plain_report(self) -> MemoryReport | None:
        """Memory of the step as written, where plans are verified by compiling."""
        return self._compile(self.program.run) if self._compile else None

    @property
    def plain_peak_bytes(self) -> int:
        """Peak of the step as written: compiled where plans are, predicted otherwise."""
        return self.plain_report.peak_bytes if self.plain_report else self.plain.peak_bytes

    def plan(self, budget: Budget) -> StepPlan:
        """The cheapest plan within a budget.

        Raises:
          BudgetError: if nothing that was found fits.
        """
        if budget == LEAST:
            return self._least()
        limit = self._limit(budget)
        if limit < self.program.held_bytes:
            raise refusal_at_once(self.program, limit)
        if self.plain_peak_bytes <= limit:
            return self._plan(self.plain, limit, self.plain_report, int(self._compile is not None))
        return self._compiled(limit, self._compile) if self._compile else self._replayed(limit)

    def _limit(self, budget: Budget) -> int:
        """A budget in bytes; only a fraction needs the step as written."""
        is_fraction = isinstance(parse_budget(budget), float)
        written_bytes = self.plain_peak_bytes if is_fraction else 0
        return budget_bytes(budget, written_bytes, usable_bytes(self.device) if budget == DEVICE else 0)

    def _replayed(self, limit: int) -> StepPlan:
        predicted = self._timed(lambda: self.planner.predicted(limit))
        if predicted.best is None:
            raise refusal(self.program, predicted.smallest.candidate, predicted.smallest.peak_bytes, limit)
        return self._plan(predicted.best.candidate, limit, None, 0)

    def _compiled(self, limit: int, compile: Compile) -> StepPlan:
        def propose(aim: int) -> Outcome:
            predicted = self._timed(lambda: self.planner.predicted(aim))
            return (predicted.best or predicted.smallest).candidate

        correction = correct(
            propose,
            lambda outcome: self._measured(outcome, compile),
            limit,
            most_trials=_MOST_COMPILATIONS,
            first_aim=limit,
            expected=lambda outcome: outcome.peak_bytes,
        )
        if correction.best is None:
            raise refusal(self.program, correction.smallest.candidate, correction.smallest.peak_bytes, limit)
        best = correction.best
        return self._plan(best.candidate, limit, best.measurement, correction.trials + 1)

    def _least(self) -> StepPlan:
        """The smallest peak that is found: compiled where plans are."""
        small = self._timed(lambda: self.planner.smallest_few(2 * _MOST_LEAST))
        small = sorted([self.plain, *small], key=lambda outcome: (outcome.peak_bytes, outcome.cost))
        if self._compile is None:
            return self._plan(small[0], small[0].peak_bytes, None, 0)
        chosen = [outcome for outcome in small if outcome is not self.plain][:_MOST_LEAST]
        trials = [Trial(outcome, report, peak) for outcome in chosen for peak, report in [self._measure(outcome)]]
        trials.append(Trial(self.plain, self.plain_report, self.plain_peak_bytes))
        best = min(trials, key=lambda trial: (trial.peak_bytes, trial.candidate.cost))
        return self._plan(best.candidate, best.peak_bytes, best.measurement, len(trials))

    def _measure(self, outcome: Outcome) -> tuple[int, MemoryReport | None]:
        return self._measured(outcome, self._compile) if self._compile else (outcome.peak_bytes, None)

    def _measured(self, outcome: Outcome, compile: Compile) -> tuple[int, MemoryReport]:
        report = compile(outcome.script.run)
        logger.debug("predicted %s, compiled %s", format_bytes(outcome.peak_bytes), format_bytes(report.peak_bytes))
        return report.peak_bytes, report

    def _timed[T](self, work: Callable[[], T]) -> T:
        start = time.perf_counter()
        try:
            return work()
        finally:
            self._spent_seconds += time.perf_counter() - start

    def _plan(self, outcome: Outcome, limit: int, compiled: MemoryReport | None, compilations: int) -> StepPlan:
        return StepPlan(
            program=self.program,
            outcome=outcome,
            plain=self.plain,
            budget_bytes=limit,
            baseline_peak_bytes=self.plain_peak_bytes,
            compiled=compiled,
            compilations=compilations,
            solve_seconds=self._spent_seconds,
            solver=self.solver,
        )
