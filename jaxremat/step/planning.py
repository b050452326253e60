"""From a traced step and a budget to a plan: search, emit, compile, correct."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from jaxremat.backends.devices import Device
from jaxremat.backends.memory import usable_bytes
from jaxremat.base.budget import DEVICE, LEAST, Budget, budget_bytes
from jaxremat.base.errors import PlanningInterrupted, TargetError
from jaxremat.base.stopwatch import Stopwatch
from jaxremat.compiled.compile import MemoryReport
from jaxremat.planner.correction import Correction, Trial, correct, smallest
from jaxremat.planner.schedules import APART
from jaxremat.planning.compilations import Compilations
from jaxremat.planning.permitted_search import PermittedSearch
from jaxremat.show.progress import StatusLine
from jaxremat.step.budget_error import below_held, refusal
from jaxremat.step.narrow import NarrowStepPlanner
from jaxremat.step.outcome import StepOutcome
from jaxremat.step.plan import StepPlan
from jaxremat.step.planner import ProgramPlanner
from jaxremat.step.program import StepProgram
from jaxremat.step.transfers import HostPlanner

StepPlanner = ProgramPlanner | HostPlanner | NarrowStepPlanner

_MOST_COMPILATIONS = 6  # as in planning: two learn, the others halve
_MOST_LEAST = 3  # candidates of small predicted peak that are compiled where nothing else fits

Compile = Callable[[Callable[[Sequence[Any]], list[Any]]], MemoryReport]
"""Compiles the step as it is called, run as given from flat inputs to flat outputs."""


Measured = Trial[StepOutcome, MemoryReport | None]
"""An outcome with its peak, compiled or else predicted, which leaves no report."""


class StepPlanning:
    """Plans of one step for any number of budgets: each of its outcomes is compiled at most once.

    Args:
      program: the step.
      planner: what proposes.
      device: what it is planned for.
      compile: compiles it for that device; None where nothing can be compiled, or shall be.
      solver: the name of what searches.
      verifies: whether plans are compiled; otherwise the compiler is heard only before it is refused.
      most_trials: how many planned steps are compiled before a budget is refused; by default, until none is known that
        may fit.
      written: the planning of the step as it is written, where this one is of another form of it.
    """

    def __init__(
        self,
        program: StepProgram,
        planner: StepPlanner,
        device: Device,
        compile: Compile | None,
        solver: str,
        *,
        verifies: bool,
        most_trials: int | None = None,
        written: StepPlanning | None = None,
    ) -> None:
        self.program = program
        self.planner = planner
        self.device = device
        self.solver = solver
        self._compile = compile
        self._verifies = verifies and compile is not None
        self._most_trials = most_trials
        self._written = written
        self._clock = Stopwatch()
        self._compilations = Compilations(self._report, self._clock, self._is_as_written)

    def of(self, program: StepProgram, planner: StepPlanner) -> StepPlanning:
        """The planning of the same step in another form."""
        return StepPlanning(
            program, planner, self.device, self._compile, self.solver,
            verifies=self._verifies, most_trials=self._most_trials, written=self,
        )  # fmt: skip

    def is_settled(self, budget: Budget) -> bool:
        """Whether the step fits as it is written, or cannot, by what its arguments and results take."""
        with self._clock.running():
            limit = self._limit(budget, self._plain)
            return self._plain.peak_bytes <= limit or limit < self.program.held_bytes

    def fits_in_order(self, budget: Budget) -> bool:
        """Whether this form of the step is predicted to fit as it stands."""
        with self._clock.running():
            return self.planner.plain.peak_bytes <= self._limit(budget, self._plain)

    def promise(self, budget: Budget) -> tuple[bool, float]:
        """(whether nothing is predicted to fit, the cost of what is, else its peak): in the order of what to try."""
        with self._clock.running():
            predicted = self.planner.predicted(self._limit(budget, self._plain))
        return (False, predicted.best.candidate.cost) if predicted.best else (True, predicted.smallest.peak_bytes)

    @property
    def _plain(self) -> Measured:
        """The step as written, as it is measured here."""
        return self._compiled_plain if self._verifies else self._predicted_plain

    @functools.cached_property
    def plain(self) -> StepOutcome:
        """The step as written."""
        return self._written.plain if self._written else self.planner.plain

    @property
    def _predicted_plain(self) -> Measured:
        return Trial(self.plain, None, self.plain.peak_bytes)

    @property
    def _compiled_plain(self) -> Trial[StepOutcome, MemoryReport]:
        return self._written._compiled_plain if self._written else self._compilations.trial(self.plain)

    def plan(self, budget: Budget) -> StepPlan:
        """The cheapest plan within a budget.

        Raises:
          BudgetError: if nothing that was found fits. A budget below what arguments and results take is refused after
            one compilation beside that of the step as written.
          PlanningInterrupted: in the place of a KeyboardInterrupt, with the best plan so far.
        """
        try:
            with StatusLine("planning"), self._clock.running():
                return self._planned(budget)
        except KeyboardInterrupt:
            raise PlanningInterrupted(self._best_so_far(budget)) from None

    def _best_so_far(self, budget: Budget) -> StepPlan | None:
        """The fastest plan that fits, of those that were compiled; the smallest where the least is wanted."""
        tried = self._compilations
        if not (smallest := tried.smallest()):
            return None
        if budget == LEAST:
            return self._plan(smallest, smallest.peak_bytes)
        limit = self._limit(budget, self._compiled_plain)
        best = tried.fastest_within([trial.candidate for trial in tried.trials], limit)
        return self._plan(tried.trial(best), limit) if best else None

    def _planned(self, budget: Budget) -> StepPlan:
        if budget == LEAST:
            least = self._compiled_least() if self._verifies else self._predicted_least()
            return self._plan(least, least.peak_bytes)
        limit = self._limit(budget, self._plain)
        if self._verifies:
            return self._plan(self._compiled(limit), limit)
        found = self._predicted(limit)
        return self._plan(found, limit) if found.peak_bytes <= limit else self._heard(budget, limit, found)

    def _limit(self, budget: Budget, plain: Measured) -> int:
        return budget_bytes(budget, plain.peak_bytes, usable_bytes(self.device) if budget == DEVICE else 0)

    def _predicted(self, limit: int) -> Measured:
        """The cheapest that is predicted to fit, or the smallest that is known by then."""
        if self.plain.peak_bytes <= limit or limit < self.program.held_bytes:
            return self._predicted_plain
        predicted = self.planner.predicted(limit)
        return predicted.best or predicted.smallest

    def _heard(self, budget: Budget, limit: int, predicted: Measured) -> StepPlan:
        """What the compiler says where nothing is predicted to fit; a fraction may then be one of what it says of the
        step as written."""
        try:
            limit = max(limit, self._limit(budget, self._compiled_plain))
        except TargetError:
            raise refusal(self.program, predicted.candidate, predicted.peak_bytes, limit) from None
        return self._plan(self._compiled(limit), limit)

    def _compiled(self, limit: int) -> Measured:
        """The cheapest that fits when it is compiled.

        Raises:
          BudgetError: if nothing does.
        """
        plain = self._compiled_plain
        if plain.peak_bytes <= limit:
            return plain
        held_bytes = plain.measurement.held_bytes
        if limit < held_bytes:
            least = self._smallest(self._small_ones(self.planner, 1)[:1], 1)
            raise below_held(self.program, least.candidate, least.peak_bytes, limit, held_bytes)
        found = self._corrected_within(limit) or self._compiled_within(limit)
        if found.peak_bytes > limit:
            raise refusal(self.program, found.candidate, found.peak_bytes, limit)
        return found

    def _corrected_within(self, limit: int) -> Measured | None:
        """The cheapest that is predicted, and corrected, to fit; None where none does, and the smallest after a number
        of compilations that was asked for."""
        if self._most_trials:
            correction = self._corrected(self.planner, limit)
            return correction.best or correction.smallest
        return self._fitting(self.planner, limit)

    def _fitting(self, planner: StepPlanner, limit: int) -> Measured | None:
        """What is found without a permission, unless something else is faster as compiled; None where nothing fits."""
        without = unpermitted(planner)
        if without is None:
            return self._corrected(planner, limit).best
        own = self._fitting(without, limit)
        if own is None:
            return self._corrected(planner, limit).best
        propose = functools.partial(_proposed_with_permission, planner, without)
        compiled = self._compilations
        search = PermittedSearch(propose, lambda outcome, _: compiled.seconds(outcome), compiled, self.plain)
        return self._compilations.trial(search.beside(own.candidate, limit))

    def _corrected(self, planner: StepPlanner, limit: int) -> Correction[StepOutcome, MemoryReport]:
        def propose(aim: int) -> StepOutcome:
            predicted = planner.predicted(aim)
            return (predicted.best or predicted.smallest).candidate

        return correct(
            propose,
            self._compilations.measure,
            limit,
            most_trials=self._most_trials or _MOST_COMPILATIONS,
            first_aim=limit,
            expected=lambda outcome: outcome.peak_bytes,
        )

    def _predicted_least(self) -> Measured:
        """The smallest predicted peak; of those that are next to it, the fastest."""
        of_each = (fastest_of_alike([self.plain, *self._small_ones(each)])[0] for each in by_permission(self.planner))
        least = min(of_each, key=_by_prediction)
        return Trial(least, None, least.peak_bytes)

    def _compiled_least(self) -> Measured:
        """The smallest compiled peak that is found: as a budget, a little less finds nothing. Of those that are next to
        it, the fastest."""
        smallest, tried = self._compiled_within(None), self._compilations
        while lower := self._fitting(self.planner, int(smallest.peak_bytes / APART)):
            smallest = lower
        alike = tried.fastest_within([trial.candidate for trial in tried.trials], int(APART * smallest.peak_bytes))
        return tried.trial(alike) if alike else smallest

    def _compiled_within(self, wanted_bytes: int | None) -> Measured:
        """The smallest compiled peak that is found, or one within some bytes, without a permission first. Of what is
        predicted alike, the fastest is compiled: all would be as far off."""
        before = len(self._compilations.trials)
        for planner in by_permission(self.planner):
            left = _MOST_LEAST - (len(self._compilations.trials) - before)
            found = self._smallest(fastest_of_alike(self._small_ones(planner)), max(left, 1), wanted_bytes)
            if wanted_bytes is not None and found.peak_bytes <= wanted_bytes:
                break
        return found

    def _small_ones(self, planner: StepPlanner, number: int = 2 * _MOST_LEAST) -> list[StepOutcome]:
        small = [planner.plain, *planner.smallest_few(number)]
        return sorted((outcome for outcome in small if outcome is not self.plain), key=_by_prediction)

    def _smallest(
        self, candidates: Sequence[StepOutcome], most_trials: int, wanted_bytes: int | None = None
    ) -> Measured:
        written = self._compiled_plain
        return smallest(
            candidates,
            self._compilations.measure,
            known=[written, *(trial for trial in self._compilations.trials if trial is not written)],
            sure=1,
            most_trials=most_trials,
            expected=lambda outcome: outcome.peak_bytes,
            wanted_bytes=wanted_bytes,
        )

    def _report(self, outcome: StepOutcome) -> MemoryReport:
        """What the compiler says of an outcome."""
        if self._compile is None:
            raise TargetError("this step cannot be compiled by itself: it needs values, or axes, of a trace around it")
        return self._compile(self.program.run if self._is_as_written(outcome) else outcome.script.run)

    def _is_as_written(self, outcome: StepOutcome) -> bool:
        return self._program_of(outcome).is_as_written(outcome.decision)

    def _program_of(self, outcome: StepOutcome) -> StepProgram:
        """The form of the step that an outcome is of."""
        return self._written.program if self._written and outcome is self.plain else self.program

    def _plan(self, found: Measured, limit: int) -> StepPlan:
        plain = self._predicted_plain if found.measurement is None else self._compiled_plain
        plannings = [self, self._written] if self._written else [self]
        return StepPlan(
            program=self._program_of(found.candidate),
            outcome=found.candidate,
            plain=self.plain,
            budget_bytes=limit,
            baseline_peak_bytes=plain.peak_bytes,
            compiled=found.measurement,
            compilations=sum(len(planning._compilations.trials) for planning in plannings),
            solve_seconds=sum(planning._clock.seconds for planning in plannings),
            solver=self.solver,
        )


def unpermitted(planner: StepPlanner) -> StepPlanner | None:
    """The planner of the same step with one permission less; None where there is none."""
    return None if isinstance(planner, ProgramPlanner) else planner.unpermitted


def by_permission(planner: StepPlanner) -> list[StepPlanner]:
    """The planner without permissions, and each with one more."""
    without = unpermitted(planner)
    return [*by_permission(without), planner] if without else [planner]


def _proposed_with_permission(planner: StepPlanner, without: StepPlanner, limit: int) -> StepOutcome | None:
    """The cheapest that is predicted to fit, where that is nothing which is found without the permission."""
    found, own = planner.predicted(limit).best, without.predicted(limit).best
    return found.candidate if found and not (own and own.candidate is found.candidate) else None


def fastest_of_alike(outcomes: Sequence[StepOutcome]) -> list[StepOutcome]:
    """The fastest of each group of outcomes whose predicted peaks are too near to tell apart, the
    smallest first."""
    groups: list[list[StepOutcome]] = []
    for outcome in sorted(outcomes, key=_by_prediction):
        if groups and outcome.peak_bytes <= APART * groups[-1][0].peak_bytes:
            groups[-1].append(outcome)
        else:
            groups.append([outcome])
    return [min(group, key=lambda outcome: outcome.cost) for group in groups]


def _by_prediction(outcome: StepOutcome) -> tuple[int, float]:
    return outcome.peak_bytes, outcome.cost
