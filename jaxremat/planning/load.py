"""A plan that was made elsewhere, put together again for the function that it was made for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxremat.backends.devices import Device, resolve_target
from jaxremat.graph.replay import replay
from jaxremat.graph.scheduled import ScheduledProgram, schedule_program
from jaxremat.planner.candidates import CheckpointOutcome
from jaxremat.planner.choose import planner_for
from jaxremat.planner.contract import Outcome
from jaxremat.planner.decision import Decision, Form, Schedule
from jaxremat.planner.problem import Problem, pose
from jaxremat.planner.schedules import ScheduleOutcome
from jaxremat.planning.plan import Plan, planned_primal
from jaxremat.planning.signature import check_program, planned_call
from jaxremat.planning.storage import StoredPlan, read_plan
from jaxremat.planning.version_one import DecisionOne
from jaxremat.solvers.auto import Auto
from jaxremat.trace.joint import Primal


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
    return restored(read_plan(path), fun, args, kwargs)


def restored(stored: StoredPlan, fun: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[Any, Any]) -> Plan:
    """The plan of a function. Traces it, but solves nothing.

    Raises:
      PlanMismatchError: if the function or its arguments are not those that were planned; with the difference.
    """
    planned = stored.decision
    call = planned_call(planned, args, kwargs)
    primal = planned_primal(planned, fun, call)
    check_program(planned, primal, stored.listing)
    decision = _completed(planned, primal)
    outcome = _outcome(decision.form, primal, stored.schedule, resolve_target(stored.numbers["target"]))
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
        return ScheduleOutcome(problem, form.program, *_replayed(problem, form.program))
    emit = form.emit if form.emit != "plain" else "schedule"
    planner = planner_for(primal, device, Auto(), emit, seed=0)
    if schedule is None or form.emit == "plain":
        return planner.plain
    problem = planner.plain.problem
    program = schedule_program(problem.graph, schedule)
    return CheckpointOutcome(problem, program, form, *_replayed(problem, program))


def _replayed(problem: Problem, program: ScheduledProgram) -> tuple[int, float]:
    timeline = replay(problem.graph, program.steps)
    return timeline.peak_bytes, timeline.cost
