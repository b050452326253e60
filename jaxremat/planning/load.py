"""A plan that was made elsewhere, put together again for the function that it was made for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from jaxremat.backends.devices import resolve_target
from jaxremat.graph.replay import replay
from jaxremat.loops.decision import LoopDecision
from jaxremat.planner.forms import planner_for
from jaxremat.planner.prediction import predict
from jaxremat.planner.problem import pose
from jaxremat.planning.plan import Plan, as_decided, planned_call
from jaxremat.planning.storage import StoredPlan, check_listing
from jaxremat.trace.joint import read_primal


def restored(stored: StoredPlan, fun: Callable, args: Sequence, kwargs: Mapping) -> Plan:
    """The plan of a function. Traces it, but solves nothing.

    Raises:
      PlanMismatchError: if the function or its arguments are not those that were planned; with the difference.
    """
    decision = stored.decision
    call = planned_call(decision, args, kwargs)
    primal = read_primal(call.bind(as_decided(decision, fun)), call.arrays, decision.argnums, decision.has_aux)
    if primal.fingerprint != decision.fingerprint:
        check_listing(stored.listing, primal)
    device = resolve_target(stored.numbers["target"])
    if decision.emit in ("names", "segments"):
        problem, schedule = planner_for(decision.emit, primal, device).problem, stored.schedule
        timeline = replay(problem.graph, schedule)
    else:
        problem = pose(primal, device, tuple(map(LoopDecision.from_json, decision.loops)))
        schedule = problem.in_order if decision.emit == "plain" else stored.schedule
        script = decision.fences, decision.start, decision.fenced
        timeline = predict(problem.joint, problem.graph, schedule, device, *script)
    return Plan(
        decision=decision,
        problem=problem,
        schedule=schedule,
        timeline=timeline,
        compiled=stored.compiled,
        **stored.numbers,
    )
