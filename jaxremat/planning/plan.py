"""The object that users hold: what was decided, its numbers, and how to apply it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxremat.backends.devices import Device, resolve_target
from jaxremat.base.budget import format_bytes
from jaxremat.base.errors import JaxrematError
from jaxremat.base.policy_texts import text_of_policy
from jaxremat.base.shapes import Int32
from jaxremat.compiled.compile import MemoryReport
from jaxremat.graph.replay import Timeline, replay
from jaxremat.graph.scheduled import ScheduledProgram
from jaxremat.planner.contract import Outcome
from jaxremat.planner.decision import Decision, FlatFunction, is_as_written, told_form
from jaxremat.planner.prediction import predict
from jaxremat.planner.problem import Problem, pose
from jaxremat.planner.schedules import SchedulePlanner
from jaxremat.planning.chunkable import rewritten
from jaxremat.planning.gradient_check import GradientCheck, check_gradients
from jaxremat.planning.request import require_function
from jaxremat.planning.signature import check_program, planned_call
from jaxremat.planning.storage import plan_text
from jaxremat.planning.version_one import DecisionOne
from jaxremat.report.explanation import MOST_PROBES, explain, matching, turning_budget
from jaxremat.report.parts import Version
from jaxremat.report.report import Numbers, Report, report_of
from jaxremat.show.described import Described
from jaxremat.show.progress import track
from jaxremat.show.sentences import explanation_lines, turning_sentence
from jaxremat.trace.arguments import Call
from jaxremat.trace.fingerprint import describe
from jaxremat.trace.primal import Primal, apply_flat, read_primal

UNMEASURED = "how far rounding takes gradients depends on the arguments: plan.measured(*args) measures and tells it"
"""What a plan says that rounds; it is made from shapes alone."""
_MEASURED = "gradients measured"


@dataclasses.dataclass(frozen=True, eq=False)
class Plan(Described):
    """A function's gradient, planned for a budget. Immutable.

    Attributes:
      decision: what to do; all that `save` needs.
      outcome: the planned program with its schedule and prediction; None in a plan that was unpickled.
      budget_bytes: the budget.
      peak_bytes: the predicted peak, in bytes, which is the timeline's; of a plan with verify="replay" whose prediction
        is above the budget, and whose compiled program is not, the compiled one.
      baseline_peak_bytes: the same for the program without rematerialization: compiled where the plan was compiled,
        predicted otherwise.
      overhead: extra time over the program without rematerialization, as a fraction: by the roofline of what
        was compiled for an accelerator, and else by the cost model; negative where the plan is faster.
      compiled: the report of the last compilation, None where nothing was compiled.
      compilations: how many compilations the plan took, the plain program's included.
      solve_seconds: wall time of tracing and solving, compilations excluded.
      solver: name of the solver.
      solver_parameters: its parameters, as plain data.
      target: name of the device that was planned for.
      warnings: what the user should know.
    """

    decision: Decision
    outcome: Outcome | None
    budget_bytes: int
    peak_bytes: int
    baseline_peak_bytes: int
    overhead: float
    compiled: MemoryReport | None
    compilations: int
    solve_seconds: float
    solver: str
    target: str
    solver_parameters: dict[str, Any] = dataclasses.field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def apply(self, fun: Callable[..., Any]) -> Callable[..., Any]:
        """`fun` with the planned gradient: same signature, same values, same gradients.

        Args:
          fun: the function that was planned, or one that traces to the same program.

        Returns:
          A function for jit, grad, vmap, scan and shard as usual. It raises PlanMismatchError at trace time for
          arguments of another shape or another program, and EmissionError when an argument is differentiated that
          was not planned.
        """
        return self._applied(fun, self.decision.form.emitted)

    @property
    def policy(self) -> Callable[..., Any]:
        """What to save, for `jax.checkpoint` and its likes; use it together with `named`, or around the author's names.

        Raises:
          EmissionError: if the plan is not one of names.
        """
        return self.decision.form.policy

    def policy_text(self, style: str = "jax") -> str:
        """The policy as it is written by hand: `save_only_these_names("query_proj", "context")`.

        Args:
          style: "jax"; or as a framework takes it: "maxtext" (flags), "axlearn" (a policy of a regular expression), or
            "haliax" (of a stack of blocks).

        Raises:
          EmissionError: if the plan is not one of names, or recomputes nothing, which only "jax" can say.
          ArgumentError: for an unknown style.
        """
        if is_as_written(self.decision.form) and style == "jax":
            return "everything_saveable"
        return text_of_policy(getattr(self.policy, "names", None), style)

    def to_maxtext(self) -> str:
        """The flags with which MaxText takes the policy: `remat_policy=custom query_proj=device ...`.

        Raises:
          EmissionError: if the plan is not one of names, or recomputes nothing.
        """
        return self.policy_text("maxtext")

    def named(self, fun: Callable[..., Any]) -> Callable[..., Any]:
        """`fun` with the plan's names on its values, for `jax.checkpoint(plan.named(fun), policy=plan.policy)`.

        Raises:
          EmissionError: if the plan is not one of names.
        """
        return self._applied(fun, self.decision.form.named)

    def _applied(self, fun: Callable[..., Any], emit: Callable[[Primal, Device], FlatFunction]) -> Callable[..., Any]:
        """A function of the same signature that runs what a form makes of its program."""
        require_function(fun)
        decision = self.decision

        @functools.wraps(fun)
        def planned(*args: Any, **kwargs: Any) -> Any:
            call = planned_call(decision, args, kwargs)
            if decision.leaves_function_alone:
                return fun(*args, **kwargs)
            primal = planned_primal(decision, fun, call)
            check_program(decision, primal, self._listing)
            return apply_flat(primal, emit(primal, decision.device), call.arrays)

        return planned

    @property
    def _listing(self) -> list[str]:
        """The planned program, a line per equation; empty where it did not travel."""
        return describe(self.outcome.problem.primal.given.jaxpr) if self.outcome else []

    @property
    def problem(self) -> Problem:
        """The program that was planned, as a graph."""
        return self._outcome.problem

    @property
    def planned(self) -> tuple[Problem, ScheduledProgram]:
        """The program and its schedule."""
        return self._outcome.problem, self._outcome.program

    @property
    def schedule(self) -> Int32[np.ndarray, " steps"]:
        """[T] int32 node ids of the problem's graph in execution order."""
        return self._outcome.program.steps

    @property
    def timeline(self) -> Timeline:
        """What the compiled program is predicted to hold, kernel by kernel."""
        return self._outcome.timeline

    @property
    def _outcome(self) -> Outcome:
        if self.outcome is None:
            raise JaxrematError(
                "this plan was unpickled, and the program that it was made for did not travel with it: apply it to the"
                " function, or save it and read it with jaxremat.load_plan(path, fun, *args)"
            )
        return self.outcome

    @functools.cached_property
    def baseline_problem(self) -> Problem:
        """The program as it was written: nothing in chunks, its loops left alone."""
        primal = self.problem.primal
        as_posed = not self.problem.loops and primal.written is None
        return self.problem if as_posed else pose(primal.written or primal, resolve_target(self.target))

    @functools.cached_property
    def baseline_timeline(self) -> Timeline:
        """The predicted timeline of the same program without recomputation."""
        plain = self.baseline_problem
        return predict(plain.joint, plain.graph, plain.in_order, resolve_target(self.target))

    @functools.cached_property
    def report(self) -> Report:
        """All that there is to say about the plan, as data."""
        return report_of(self.numbers, self._written, self._planned)

    @property
    def numbers(self) -> Numbers:
        """The headline's numbers."""
        return Numbers.of(self, told_form(self.decision.emit, self.decision.chunks))

    def explain(self, pattern: str | None = None, *, when: bool = False) -> str:
        """Why values are saved or not, what they hold, and what recomputing them costs or would cost.

        Args:
          pattern: a part of a module path (`block_3/attention`), of a name given with `checkpoint_name`, of an
            operation, or of a source line; None for everything.
          when: whether to find the budget at which that changes for the largest of them; this plans a few times more.

        Raises:
          ArgumentError: if nothing matches; the message lists paths that exist.
        """
        seconds = self.baseline_timeline.cost
        lines = explanation_lines(explain(self._decided, pattern, self.report.table, seconds))
        if when:
            lines.append(self._turning_point(pattern))
        return "\n".join(lines)

    def save(self, path: str | Path) -> None:
        """Writes the plan as JSON; `jaxremat.load_plan` reads it back where the function is at hand."""
        Path(path).write_text(self._file_text)

    @functools.cached_property
    def _file_text(self) -> str:
        return plan_text(self, self._values)

    def check_grads(self, *args: Any, rtol: float | None = None, **kwargs: Any) -> GradientCheck:
        """Runs the planned gradient against the plain one.

        Args:
          args, kwargs: concrete arrays of the planned shapes, in trees.
          rtol: the largest relative difference allowed; None follows the narrowest floating type in the program.

        Returns:
          The largest difference that was found, and where.

        Raises:
          GradientError: if it is larger than allowed, or a result or a gradient is not a number.
          PlanMismatchError: for arguments of other shapes.
        """
        call = planned_call(self.decision, args, kwargs)
        return check_gradients(self.problem.joint, self.decision, call.arrays, rtol)

    def measured(self, *args: Any, rtol: float | None = None, **kwargs: Any) -> Plan:
        """The same plan, which tells how far its gradients are from the plain ones on some arguments.

        Args:
          args, kwargs: concrete arrays of the planned shapes, in trees.
          rtol: as in `check_grads`.

        Returns:
          A plan whose `warnings` hold what `check_grads` found; the display, `summary` and files tell it.

        Raises:
          GradientError, PlanMismatchError: as `check_grads`.
        """
        check = self.check_grads(*args, rtol=rtol, **kwargs)
        told = f"{_MEASURED} on {jax.default_backend()}, on one set of arguments: {check}"
        others = (each for each in self.warnings if each != UNMEASURED and not each.startswith(_MEASURED))
        return dataclasses.replace(self, warnings=(*others, told))

    def __repr__(self) -> str:
        budget, peak = format_bytes(self.budget_bytes), format_bytes(self.peak_bytes)
        return f"<Plan for {budget} on {self.target}: predicted {peak}, extra time {self.overhead:.1%}>"

    @functools.cached_property
    def _planned(self) -> Version:
        return Version(self.problem, self._outcome.program, self.timeline, resolve_target(self.target))

    @functools.cached_property
    def _written(self) -> Version:
        plain = self.baseline_problem
        return Version(plain, plain.in_order, self.baseline_timeline, resolve_target(self.target))

    def __getstate__(self) -> dict[str, Any]:
        """What travels: decision, numbers and all that the display says; the program itself stays behind."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        told = {name: getattr(self, name) for name in ("report", "_values", "_file_text")}
        return {**fields, "outcome": None, **told}

    def _turning_point(self, pattern: str | None) -> str:
        """The budget at which the largest value that a pattern matches changes its mind."""
        if self.problem.loops:
            return "values inside of loops are decided with their loops, not one by one"
        graph, here = self.problem.graph, replay(self.problem.graph, self.schedule).peak_bytes
        plain = replay(graph, self.problem.in_order.steps).peak_bytes
        offset = self.peak_bytes - here
        probes = track(range(MOST_PROBES), "planning for other budgets")

        def span(saved: bool) -> tuple[int, int]:
            return here + offset, (graph.resident_bytes if saved else plain) + offset

        def saves_at(budget_bytes: int, value: int) -> bool:
            next(probes, None)
            return bool(np.isin(value, self._planner.fit(budget_bytes - offset).program.saved))

        found = turning_budget(matching(self._decided, pattern), self.baseline_timeline.cost, span, saves_at)
        return turning_sentence(found, self.peak_bytes)

    @functools.cached_property
    def _planner(self) -> SchedulePlanner:
        return SchedulePlanner(self.problem.primal.given, resolve_target(self.target))


def planned_primal(decision: Decision | DecisionOne, fun: Callable[..., Any], call: Call) -> Primal:
    """What a function traces to, with the parts in chunks that were planned so."""
    return rewritten(read_primal(call.bind(fun), call.arrays, decision.argnums, decision.has_aux), decision.chunks)
