"""Decisions that were made before, as outcomes again; nothing is searched."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from jaxremat.backends.devices import Device, resolve_target
from jaxremat.base import compat
from jaxremat.base.compat import Jaxpr
from jaxremat.planning.plan_cache import Kept
from jaxremat.step.decision import ProgramDecision
from jaxremat.step.joining import joined
from jaxremat.step.outcome import StepOutcome, pose_program
from jaxremat.step.pairs import emit_pairs, find_pairs, weights_of
from jaxremat.step.plan import StepPlan
from jaxremat.step.planner import step_planner
from jaxremat.step.program import NOT_ALIASED, Aliased, StepProgram
from jaxremat.step.rewriting import Replacements, bodies_of, rewritten, with_bodies
from jaxremat.step.scheduling import judged
from jaxremat.step.slicing import sliced
from jaxremat.step.storage import StoredStepPlan, check_program, parse_step_plan, step_plan_text, stored_step_plan


def restored_plan(stored: StoredStepPlan, written: StepProgram) -> StepPlan:
    """The plan of a step that was made before; nothing is searched.

    Raises:
      PlanMismatchError: if it was made for another step; with the difference.
    """
    check_program(stored, written)
    program, device = sliced(written, stored.chunks), resolve_target(stored.numbers["target"])
    outcome = restored(program.jaxpr, stored.decision, device, program.shardings, program.aliased)
    numbers = {name: value for name, value in stored.numbers.items() if name != "target"}
    return StepPlan(program, outcome, step_planner(written, device).plain, compiled=stored.compiled, **numbers)


def kept_for(written: StepProgram) -> Kept[StepPlan, StoredStepPlan]:
    """How plans of a step are kept."""
    return Kept(
        stored=stored_step_plan,
        restored=lambda stored: restored_plan(stored, written),
        text=step_plan_text,
        read=lambda text, path: restored_plan(parse_step_plan(text, path), written),
    )


def restored(
    jaxpr: Jaxpr,
    decision: ProgramDecision,
    device: Device,
    shardings: tuple[Any, ...] = (),
    aliased: Aliased = NOT_ALIASED,
    *,
    is_body: bool = False,
) -> StepOutcome:
    """The outcome of a decision that was made before, for the same program; nothing is searched."""
    jaxpr = (joined(jaxpr) if decision.joined else None) or jaxpr
    new = {}
    for position, k, inner in decision.bodies:
        eqn = jaxpr.eqns[position]
        with compat.in_body_of(eqn):
            new[position, k] = restored(bodies_of(eqn)[k], inner, device, is_body=True).jaxpr
    emitted: Replacements = {}
    if decision.pairs:
        weights = weights_of(jaxpr, is_body)
        emitted = emit_pairs(jaxpr, find_pairs(jaxpr, decision.storages, weights), decision.pairs, device.backend)
    program = rewritten(jaxpr, {**emitted, **with_bodies(jaxpr, new)})
    posed = pose_program(program, device, shardings, aliased, is_body=is_body)
    steps = np.asarray(decision.steps or np.arange(posed.graph.num_nodes), np.int32)
    schedule = dataclasses.replace(judged(posed.graph, steps, decision.barriers), barrier_scope=decision.barrier_scope)
    return StepOutcome(posed, schedule, decision)
