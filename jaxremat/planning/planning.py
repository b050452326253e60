"""Plans of one program: search, compile, correct."""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import time
from collections.abc import Iterator, Sequence

from jaxremat.backends.memory import usable_bytes
from jaxremat.base.budget import LEAST, Budget, budget_bytes, format_bytes, keep_bytes
from jaxremat.base.errors import ArgumentError, BudgetError, PlanningInterrupted, TargetError
from jaxremat.base.telling import tell
from jaxremat.chunk.choice import Chunked
from jaxremat.compiled.compile import MemoryReport
from jaxremat.planner.choose import planner_for
from jaxremat.planner.contract import Outcome, Planner, SavingPlanner, left_behind
from jaxremat.planner.correction import CLOSE_ENOUGH, Correction, Trial, correct, smallest
from jaxremat.planner.decision import Decision
from jaxremat.planner.schedules import SchedulePlanner, apart
from jaxremat.planning.budget_error import refusal
from jaxremat.planning.chunkable import rewritten
from jaxremat.planning.compilation import compile_program
from jaxremat.planning.plan import Plan
from jaxremat.planning.request import Request
from jaxremat.planning.signature import signature_of
from jaxremat.planning.warnings import budget_warnings, loss_warnings, storage_warnings
from jaxremat.solvers.registry import solver_parameters
from jaxremat.trace.joint import Primal

logger = logging.getLogger("jaxremat")

_MOST_COMPILATIONS = 4  # two learn by how much the prediction is off, the others halve what is left: to 2 %
_MOST_PREDICTIONS = 6  # as compilations; what is left, a compilation corrects
_UNUSED = 0.05  # of the budget: about as far as predictions for GPUs are off in the median, 4.5 %: prediction.md
_BEYOND_DOUBT = 1.6  # of a limit: predicted peaks were above compiled ones by a sixth, prediction.md; a LLaMA's by half
_MOST_LEAST = 6  # compilations: the smallest peak is wanted, not the smallest prediction


class Planning:
    """Plans of one program for any number of budgets: it is traced once, and compiled as written at most once.

    Args:
      request: what is planned, and how.
      chunks: the parts that run in chunks; overhead and baseline are told against the program as it is written.
      written: the planning of the program as it is written, where that is another one.
    """

    def __init__(self, request: Request, chunks: Sequence[Chunked] = (), written: Planning | None = None) -> None:
        self.request = request
        self.chunks = tuple(chunks)
        self._written = written or self
        self.primal: Primal = request.primal if written is None else rewritten(written.primal, self.chunks)
        start = time.perf_counter()
        loss = loss_warnings(self.primal) if request.is_loss else ()
        in_chunks = (f"in chunks, so that values agree up to rounding: {chunk}" for chunk in self.chunks)
        self.told = (*loss, *in_chunks)
        self.planner = self._new_planner()
        self.plain = self.planner.plain
        self._solve_seconds = request.trace_seconds + time.perf_counter() - start
        self._reports: dict[int, tuple[Outcome, MemoryReport]] = {}

    def _new_planner(self) -> Planner:
        request = self.request
        return planner_for(
            self.primal,
            request.device,
            request.solver,
            request.emit,
            request.seed,
            request.allow,
            host_budget_bytes=request.host_budget_bytes,
        )

    def in_chunks(self, chunks: Sequence[Chunked]) -> Planning:
        """The planning of the same program with some parts in chunks."""
        return Planning(self.request, chunks, self)

    @functools.cached_property
    def plain_report(self) -> MemoryReport:
        """Memory of the program as written, compiled."""
        return compile_program(self.primal, self.planner.as_written, self.request.has_aux, self.request.device).report

    @property
    def plain_peak_bytes(self) -> int:
        """Peak of the program as written: compiled where plans are, predicted otherwise."""
        return self.plain_report.peak_bytes if self.request.verify == "compile" else self.plain.peak_bytes

    def plan(self, budget: Budget) -> Plan:
        """The cheapest plan within a budget.

        Raises:
          BudgetError: if nothing that was found fits.
          PlanningInterrupted: in the place of a KeyboardInterrupt, with the best plan so far.
        """
        try:
            return self._planned(budget)
        except KeyboardInterrupt:
            raise PlanningInterrupted(self._best_so_far(budget)) from None

    def _planned(self, budget: Budget) -> Plan:
        compiles = self.request.verify == "compile"
        if budget == LEAST:
            least = self._compiled_least() if compiles else self._predicted_least()
            return self._plan(least.candidate, least.peak_bytes)
        limit = self._limit(budget, self.plain_peak_bytes)
        if self.fits_as_written(limit):
            return self._plan(self.plain, limit)
        return self._plan(self._compiled(limit), limit) if compiles else self._predicted_or_compiled(budget, limit)

    def _best_so_far(self, budget: Budget) -> Plan | None:
        """The fastest plan that fits, of those that were compiled; the smallest where the least is wanted."""
        outcomes = [outcome for outcome, _ in self._reports.values()]
        if budget == LEAST:
            smallest = min(map(self._trial, outcomes), key=lambda trial: trial.peak_bytes, default=None)
            return self._plan(smallest.candidate, smallest.peak_bytes) if smallest else None
        limit = self._limit(budget, self.plain_report.peak_bytes) if outcomes else 0
        best = self._fastest_within(outcomes, limit)
        return self._plan(best, limit) if best else None

    def _limit(self, budget: Budget, plain_peak_bytes: int) -> int:
        return budget_bytes(budget, plain_peak_bytes, usable_bytes(self.request.device))

    def fits_as_written(self, limit: int) -> bool:
        """Whether nothing has to be done; a program in chunks is compiled to know only if it is predicted to fit."""
        predicted = not self.chunks or self.plain.peak_bytes <= limit
        return self.planner.traits.may_leave_alone and predicted and self.plain_peak_bytes <= limit

    def predicted(self, limit: int) -> tuple[bool, float]:
        """To sort by: whether nothing is predicted to fit, then seconds of the cheapest or bytes of the smallest."""
        found = self._predicted(limit)
        return (False, found.best.candidate.cost) if found.best else (True, found.smallest.peak_bytes)

    def keeping(self, keep: Budget) -> Plan:
        """The cheapest plan whose forward leaves no more than that to the backward, inputs aside.

        Args:
          keep: bytes, text, or a fraction of what the backward of the program as written reads.
        """
        if not isinstance(self.planner, SavingPlanner):
            raise ArgumentError("keep=... decides schedules of the default search: emit='schedule' and solver='auto'")
        outcome = self.planner.leaving(keep_bytes(keep, left_behind(self.planner.plain)))
        return self._plan(outcome, outcome.peak_bytes)

    def _predicted_or_compiled(self, budget: Budget, limit: int) -> Plan:
        """The cheapest plan that is predicted to fit. A prediction alone refuses nothing: the compiler is asked before,
        and a fraction may then be one of what it says of the program as written."""
        if not self._is_predicted_below_held(limit) and (best := self._predicted(limit).best):
            return self._plan(best.candidate, limit)
        if not self.request.refuses:
            return self._plan(self._predicted_least().candidate, limit)
        logger.info("nothing is predicted to fit in %s; compiling to be sure", format_bytes(limit))
        try:
            limit = max(limit, self._limit(budget, self.plain_report.peak_bytes))
        except TargetError:
            return self._plan(self._predicted_least().candidate, limit)
        fits = self.planner.traits.may_leave_alone and self.plain_report.peak_bytes <= limit
        return self._plan(self.plain if fits else self._compiled(limit), limit)

    def _is_hopeless(self, limit: int) -> bool:
        """Whether a limit is so far below what the smallest schedule is predicted to take that the compiler need be
        asked of that one alone, where predictions are known to be near: of whole programs on one device."""
        problem, request = self.plain.problem, self.request
        is_usual = request.emit == "schedule" and not self.chunks and not any(self.primal.shardings)
        is_known = is_usual and request.verify == "replay" and problem.device.backend.predicts_closely
        if not is_known:
            return False
        smallest = min(self.planner.least(), key=lambda outcome: outcome.replayed_bytes)
        return smallest.peak_bytes > _BEYOND_DOUBT * limit

    def _is_predicted_below_held(self, limit: int) -> bool:
        return limit < self.plain.problem.graph.resident_bytes

    def is_below_held(self, limit: int) -> bool:
        """Whether a budget is below what the arguments and results of the program take, as compiled."""
        try:
            return self._is_predicted_below_held(limit) and limit < self.plain_report.held_bytes
        except TargetError:
            return False

    def _compiled(self, limit: int) -> Outcome:
        """The cheapest outcome whose compiled peak is within the limit.

        Raises:
          BudgetError: if there is none. A budget below what arguments and results take, or far below all predictions
            where these are trusted, is refused after one compilation beside that of the program as written.
        """
        is_hopeless = self.is_below_held(limit) or self._is_hopeless(limit)
        if not is_hopeless and (found := self._fitting(limit)):
            return self._much_faster(found, limit) or found
        least = self._quickly_least() if is_hopeless and self.request.refuses else self._compiled_least(limit)
        if least.peak_bytes > limit and self.request.refuses:
            raise self._refusal(least.candidate, least.peak_bytes, limit)
        return self._much_faster(least.candidate, limit) or least.candidate

    def _much_faster(self, outcome: Outcome, limit: int) -> Outcome | None:
        """Where an outcome takes more than twice the time of the program as written, what of the smallest takes less
        than half of that, and fits as well: all that can wait on a host is small, and waits."""
        if not self.planner.traits.predicts_time or outcome.cost < 2 * self.plain.cost:
            return None
        faster = [each for each in self.planner.least() if each.cost < outcome.cost / 2]
        likely = [each for each in faster if each.peak_bytes <= self._learnt(outcome, limit)]
        return self._fastest_within(sorted(likely, key=lambda each: each.cost)[:2], limit)

    def _fitting(self, limit: int) -> Outcome | None:
        """The cheapest outcome whose compiled peak is within the limit, of those that are predicted to be; None where
        none is."""
        if self.planner.traits.predicts_time and (fastest := self._fastest(limit)):
            return fastest

        def propose(aim: int) -> Outcome:
            predicted = self._predicted(aim)
            return (predicted.best or predicted.smallest).candidate

        correction: Correction[Outcome, MemoryReport] = correct(
            propose,
            self._measure,
            limit,
            most_trials=_MOST_COMPILATIONS,
            first_aim=self._learnt_at_worst(limit) if self.planner.traits.predicts_time else limit,
            expected=lambda outcome: outcome.peak_bytes,
        )
        if correction.best is None:
            return None
        best = correction.best.candidate
        left = _MOST_COMPILATIONS - correction.trials
        for outcome in itertools.islice(self.planner.near_misses(best, limit), left):
            if outcome.cost < best.cost and self._measure(outcome)[0] <= limit:
                best = outcome
        return best

    def _fastest(self, limit: int) -> Outcome | None:
        """The fastest, by the roofline of what was compiled, of the few that are predicted to be; None where none of
        them fits.

        Each compilation teaches where the next one should look. It is over with one that just fits; after two, where
        one fits and leaves few bytes unused; after three in any case."""
        tried = [self._fit(limit)]
        if limit < min(self._measure(tried[0])[0], tried[0].peak_bytes):
            return None
        if not self._is_used(limit, tried[0], CLOSE_ENOUGH):
            tried.append(self._likelier(tried, limit))
        tried.extend(self.planner.near_misses(self._fastest_within(tried, limit) or tried[0], limit))
        best = self._fastest_within(tried, limit)
        if best is None or not self._is_used(limit, best, _UNUSED):
            tried.append(self._likelier(tried, limit))
        return self._fastest_within(tried, limit)

    def _is_used(self, limit: int, outcome: Outcome, unused: float) -> bool:
        """Whether an outcome, as compiled, fits and leaves at most a part of the limit unused."""
        return (1 - unused) * limit <= self._measure(outcome)[0] <= limit

    def _likelier(self, tried: Sequence[Outcome], limit: int) -> Outcome:
        """What should just fit, were predictions as far off as that of the one which came nearest to the limit, and a
        little less where none fits; where it was tried, what should take a little too much: single predictions are off.
        """
        nearest = min(tried, key=lambda outcome: abs(self._measure(outcome)[0] - limit))
        learnt_bytes = self._learnt(nearest, limit)
        if not self._fastest_within(tried, limit):
            return self._fit(int((1 - CLOSE_ENOUGH) * learnt_bytes))
        found = self._fit(int(learnt_bytes))
        return found if found not in tried else self._fit(int((1 + self.planner.traits.peak_doubt) * learnt_bytes))

    def _learnt(self, outcome: Outcome, limit: int) -> float:
        """What is predicted of a program that takes the limit, were its prediction as far off as an outcome's."""
        return outcome.peak_bytes * limit / self._measure(outcome)[0]

    def _learnt_at_worst(self, limit: int) -> int:
        """The same by the prediction that was the furthest too low, the limit at most."""
        outcomes = (outcome for outcome, _ in self._reports.values() if outcome is not self.plain)
        return min([limit, *(int(self._learnt(outcome, limit)) for outcome in outcomes)])

    def _fit(self, aim: int) -> Outcome:
        with self._solving():
            return self.planner.fit(aim)

    def _fastest_within(self, outcomes: Sequence[Outcome], limit: int) -> Outcome | None:
        """The fastest, as compiled, of those whose compiled peak is within the limit."""
        fitting = [outcome for outcome in outcomes if self._measure(outcome)[0] <= limit]
        return min(fitting, key=lambda outcome: self._measure(outcome)[1].seconds or outcome.cost, default=None)

    def _predicted_least(self) -> Trial[Outcome, None]:
        """The outcome with the smallest predicted peak that is known."""
        with self._solving():
            least = min([*self._leaving_least(), *self.planner.least(), self.plain], key=self._size)
            return Trial(least, None, least.peak_bytes)

    def _compiled_least(self, wanted_bytes: int | None = None) -> Trial[Outcome, MemoryReport]:
        """The outcome with the smallest compiled peak that is found, or one within some bytes.

        The smallest by prediction, and the first of the planner's, are compiled whatever is wanted: who asks for a peak
        that a refusal named finds it again. Of others that are predicted alike one is compiled: all would be as far
        off.
        """
        if not self.request.refuses:
            return self._trial(self._predicted_least().candidate)
        with self._solving():
            first, *others = self.planner.least()
            leading, *rest = self._smallest_first([first, *others])
        in_order = dict.fromkeys([leading, first, *apart(rest, self._size)])
        return self._smallest(list(in_order), 2, _MOST_LEAST, wanted_bytes)

    def _smallest_first(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        """In the order of predicted peaks; of those that are next to the smallest, the smallest by replay leads."""
        alike_bytes = (1 + CLOSE_ENOUGH) * min(map(self._size, outcomes))
        alike = [outcome for outcome in outcomes if self._size(outcome) <= alike_bytes]
        leading = min(alike, key=lambda outcome: outcome.replayed_bytes)
        return sorted(outcomes, key=lambda outcome: (outcome is not leading, self._size(outcome)))

    def _quickly_least(self) -> Trial[Outcome, MemoryReport]:
        """The program as written, or the smallest by replay where that is predicted, and compiled, to take less."""
        with self._solving():
            first = self.planner.least()[0]
            is_lower = first.peak_bytes < self.plain_report.peak_bytes
        return self._smallest([first] if is_lower else [], 1, 1)

    def _smallest(
        self, candidates: Sequence[Outcome], sure: int, most_trials: int, wanted_bytes: int | None = None
    ) -> Trial[Outcome, MemoryReport]:
        return smallest(
            candidates,
            self._measure,
            known=[self._trial(self.plain)],
            sure=sure,
            most_trials=most_trials,
            expected=lambda outcome: outcome.peak_bytes,
            wanted_bytes=wanted_bytes,
        )

    def _trial(self, outcome: Outcome) -> Trial[Outcome, MemoryReport]:
        peak_bytes, report = self._measure(outcome)
        return Trial(outcome, report, peak_bytes)

    def _size(self, outcome: Outcome) -> int:
        """The peak; of a block, beside what an equal one before it left behind: a program is made of several."""
        return outcome.peak_bytes + (0 if self.request.refuses else left_behind(outcome))

    def _leaving_least(self) -> list[Outcome]:
        """Of a block, what leaves nothing behind where that can be."""
        if self.request.refuses or not isinstance(self.planner, SavingPlanner):
            return []
        return [self.planner.leaving(0)]

    def _predicted(self, limit: int) -> Correction[Outcome, None]:
        """The fastest outcome whose predicted peak is within the limit: one that needs no new memory may be it."""
        found = self._predicted_within(limit)
        if found.best is None:
            return found
        seconds = self._seconds(found.best.candidate, None)
        waits = seconds > found.best.candidate.cost and limit > self._reused_bytes
        if not waits or self._fit(self._reused_bytes).cost >= seconds:
            return found
        smaller = self._within_reused.best
        return self._within_reused if smaller and self._seconds(smaller.candidate, None) < seconds else found

    @property
    def _reused_bytes(self) -> int:
        """The largest peak of a program that runs in memory which it gave back before."""
        return self.plain.problem.graph.resident_bytes + (self.request.device.backend.reused_bytes or 0)

    @functools.cached_property
    def _within_reused(self) -> Correction[Outcome, None]:
        return self._predicted_within(self._reused_bytes)

    def _predicted_within(self, limit: int) -> Correction[Outcome, None]:
        """The cheapest outcome whose predicted peak is within the limit."""

        def measure(outcome: Outcome) -> tuple[int, None]:
            return outcome.peak_bytes, None

        with self._solving():
            correction = correct(
                self.planner.fit,
                measure,
                limit,
                most_trials=1 if self.planner.traits.predicts_time else _MOST_PREDICTIONS,
                first_aim=max(1, limit + self.plain.replayed_bytes - self.plain.peak_bytes),
                expected=lambda outcome: outcome.replayed_bytes,
            )
            if correction.best or self._is_hopeless(limit):
                return correction
            return correction.with_more(self.planner.least(), measure, limit)

    def _measure(self, outcome: Outcome) -> tuple[int, MemoryReport]:
        """(compiled peak, report) of an outcome, compiled once."""
        if id(outcome) not in self._reports:
            told = f"compiling what is predicted to take {format_bytes(outcome.peak_bytes)}"
            tell(f"{told}, {len(self._reports)} compiled before")
            as_written = outcome.form.emit == "plain"
            report = self.plain_report if as_written else self._compiled_report(outcome)
            logger.debug("predicted %s, compiled %s", format_bytes(outcome.peak_bytes), format_bytes(report.peak_bytes))
            self._reports[id(outcome)] = outcome, report
        report = self._reports[id(outcome)][1]
        return report.peak_bytes, report

    def _compiled_report(self, outcome: Outcome) -> MemoryReport:
        emitted = outcome.form.emitted(self.primal, self.request.device, outcome.problem.joint)
        return compile_program(self.primal, emitted, self.request.has_aux, self.request.device).report

    @contextlib.contextmanager
    def _solving(self) -> Iterator[None]:
        """Counts what is done inside as the time of solving."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._solve_seconds += time.perf_counter() - start

    def _refusal(self, smallest: Outcome, peak_bytes: int, limit: int) -> BudgetError:
        """The error for this limit; where the form cannot express everything, with what another one would need."""
        request = self.request
        others = () if request.emit == "schedule" else SchedulePlanner(self.primal, request.device).least()
        other_bytes = min((outcome.peak_bytes for outcome in others), default=None)
        return refusal(smallest, peak_bytes, limit, schedule_bytes=other_bytes, may_chunk="chunk" in request.allow)

    def _plan(self, outcome: Outcome, limit: int) -> Plan:
        report = self._report_of(outcome)
        written = self._written
        return Plan(
            decision=self._decision(outcome),
            outcome=outcome,
            budget_bytes=limit,
            peak_bytes=self._peak_bytes(outcome, report, limit),
            baseline_peak_bytes=written.plain_peak_bytes if report is None else written.plain_report.peak_bytes,
            overhead=self._overhead(outcome, report),
            compiled=report,
            compilations=self._compilations,
            solve_seconds=self._solve_seconds,
            solver=self.request.solver.name,
            solver_parameters=solver_parameters(self.request.solver),
            target=self.request.device.name,
            warnings=(*self.told, *storage_warnings(outcome, report), *budget_warnings(outcome, report, limit)),
        )

    def _peak_bytes(self, outcome: Outcome, report: MemoryReport | None, limit: int) -> int:
        """The predicted peak; where predictions are trusted, and the compiler has disproved one, the compiled peak."""
        trusts = self.request.verify == "replay"
        if trusts and report is not None and report.peak_bytes <= limit < outcome.peak_bytes:
            return report.peak_bytes
        return outcome.peak_bytes

    @property
    def _compilations(self) -> int:
        written = [self.plain_report] if "plain_report" in vars(self) else []
        return len({id(report) for report in (*written, *(report for _, report in self._reports.values()))})

    def _overhead(self, outcome: Outcome, report: MemoryReport | None) -> float:
        """Extra time as a fraction, by what was compiled where something was."""
        written = self._written
        return self._seconds(outcome, report) / self._seconds(written.plain, report and written.plain_report) - 1

    def _seconds(self, outcome: Outcome, report: MemoryReport | None) -> float:
        """Time of one run: by the roofline of what was compiled, where there is one, or else predicted."""
        if report and report.seconds:
            return report.seconds
        temp_bytes = report.temp_bytes if report else outcome.peak_bytes - outcome.problem.graph.resident_bytes
        return outcome.cost + self.request.device.first_touch_seconds(temp_bytes)

    def _report_of(self, outcome: Outcome) -> MemoryReport | None:
        """What the compiler says of an outcome, where it was asked."""
        if id(outcome) in self._reports:
            return self._reports[id(outcome)][1]
        return self.plain_report if outcome is self.plain and "plain_report" in vars(self) else None

    def _decision(self, outcome: Outcome) -> Decision:
        request = self.request
        signature = signature_of(request.args)
        return Decision(
            self.primal.fingerprint,
            signature,
            request.argnums,
            request.has_aux,
            request.device.name,
            outcome.form,
            self.chunks,
        )
