"""A plan that was made elsewhere, put together again for the function that it was made for."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jaxremat.backends.devices import Device, resolve_target
from jaxremat.graph.replay import Timeline, replay
from jaxremat.graph.scheduled import ScheduledProgram, schedule_program
from jaxremat.planner.candidates import CheckpointOutcome
from jaxremat.planner.choose import planner_for
from jaxremat.planner.contract import Outcome
from jaxremat.planner.decision import Decision, Form, Schedule, is_as_written
from jaxremat.planner.problem import Problem, pose
from jaxremat.planner.schedules import ScheduleOutcome
from jaxremat.planning.chunkable import rewritten
from jaxremat.planning.plan import Plan, planned_primal
from jaxremat.planning.request import Request
from jaxremat.planning.signature import check_program, planned_call
from jaxremat.planning.storage import StoredPlan, read_plan
from jaxremat.planning.version_one import DecisionOne
from jaxremat.solvers.auto import Auto
from jaxremat.trace.primal import Primal


def load_plan(path: str | Path, fun: Callable[..., Any], *args: Any, **kwargs: Any) -> Plan:
    """Reads a plan that `Plan.save` wrote, for the function that it was made for. Traces it, but solves nothing.

    Args:
      path: the file.
      fun: the function that was planned.
      args, kwargs: arguments of the planned shapes: arrays or ShapeDtypeStructs, in trees.

    Returns:
      The plan, as it was when it was saved.

    Raises:
      PlanMismatchError: if the file is damaged, or the function or its arguments have changed; with the difference.
    """
    stored = read_plan(path)
    call = planned_call(stored.decision, args, kwargs)
    return checked(_restored(stored, planned_primal(stored.decision, fun, call)))


def restored_for(request: Request, stored: StoredPlan) -> Plan:
    """A plan that was made for an equal request. Solves nothing, and puts the planned program together on demand.

    Raises:
      PlanMismatchError: if the program or its arguments are not those that were planned; with the difference.
    """
    planned_call(stored.decision, request.args, {})
    return _restored(stored, rewritten(request.primal, stored.decision.chunks))


def checked(plan: Plan) -> Plan:
    """A plan whose program is put together now: what is damaged is told here, not where it is used."""
    _ = plan.problem
    return plan


@dataclasses.dataclass(frozen=True, eq=False)
class OutcomeOnDemand:
    """An outcome of which only the form is known until somebody looks at its program.

    Attributes:
      form: what is emitted.
      make: puts the rest together.
    """

    form: Form
    make: Callable[[], Outcome]

    @functools.cached_property
    def _made(self) -> Outcome:
        return self.make()

    @property
    def problem(self) -> Problem:
        return self._made.problem

    @property
    def program(self) -> ScheduledProgram:
        return self._made.program

    @property
    def timeline(self) -> Timeline:
        return self._made.timeline

    @property
    def peak_bytes(self) -> int:
        return self._made.peak_bytes

    @property
    def replayed_bytes(self) -> int:
        return self._made.replayed_bytes

    @property
    def cost(self) -> float:
        return self._made.cost

    def at_cost(self, seconds: float) -> OutcomeOnDemand:
        """The same at another cost."""
        return OutcomeOnDemand(self.form, lambda: self._made.at_cost(seconds))


def _restored(stored: StoredPlan, primal: Primal) -> Plan:
    """The plan of a program, in chunks as planned."""
    check_program(stored.decision, primal, stored.listing)
    decision = _completed(stored.decision, primal)
    device = resolve_target(stored.numbers["target"])
    outcome = OutcomeOnDemand(decision.form, lambda: _outcome(decision.form, primal, stored.schedule, device))
    return Plan(
        decision=decision,
        outcome=outcome,
        compiled=stored.compiled,
        solver_parameters=stored.solver_parameters,
        **stored.numbers,
    )


def _completed(decision: Decision | DecisionOne, primal: Primal) -> Decision:
    return decision if isinstance(decision, Decision) else decision.completed(primal)


def _outcome(form: Form, primal: Primal, schedule: Sequence[int] | None, device: Device) -> Outcome:
    if isinstance(form, Schedule):
        problem = pose(form.program_of(primal), device, form.loops, storages=form.storages)
        problem.joint.require_planned(form.gradient)
        return ScheduleOutcome(problem, form.program, *_replayed(problem, form.program))
    alone = is_as_written(form)
    planner = planner_for(primal, device, Auto(), "schedule" if alone else form.emit, seed=0)
    if schedule is None or alone:
        return planner.plain
    problem = planner.plain.problem
    program = schedule_program(problem.graph, schedule)
    return CheckpointOutcome(problem, program, form, *_replayed(problem, program))


def _replayed(problem: Problem, program: ScheduledProgram) -> tuple[int, float]:
    timeline = replay(problem.graph, program.steps)
    return timeline.peak_bytes, timeline.cost
