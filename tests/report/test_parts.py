"""A plan's record of what is saved is what is emitted, what is predicted to live, and what is told."""

import numpy as np


def saved_variables(plan):
    problem, program = plan.planned
    return {problem.joint.values[value] for value in program.saved.tolist()}


def test_what_the_record_saves_is_what_the_emitted_forward_hands_to_the_backward(any_plan):
    problem, _ = any_plan.planned
    joint, script = any_plan.decision.form.script(problem.primal, any_plan.decision.device, problem.joint)
    opening = {v for segment in script.opening for eqn in segment.eqns for v in eqn.outvars}
    assert {*script.residuals} - {*joint.inputs} == saved_variables(any_plan) - opening != set()


def test_what_the_record_saves_is_what_is_predicted_to_live_across_the_turn(any_plan):
    problem, program = any_plan.planned
    graph, timeline = problem.graph, any_plan.timeline
    turn = np.flatnonzero(graph.backward[timeline.schedule])[0]
    value, first, last = timeline.spans.T
    across = {*value[(first < turn) & (turn < last)].tolist()} - {*np.flatnonzero(graph.is_output).tolist()}
    large = {v for v in program.saved.tolist() if graph.value_bytes[v]}
    assert large - {*np.flatnonzero(graph.is_output).tolist()} <= across <= {*program.saved.tolist()}


def test_what_the_record_saves_is_what_is_told(any_plan):
    problem, program = any_plan.planned
    outside = [value for value in any_plan.saved if not value.iterations]
    if not problem.loops:
        assert sum(value.total_bytes for value in outside) == problem.graph.value_bytes[program.saved].sum()
    assert {value.action for value in outside} == {"save"}
