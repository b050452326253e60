"""The planned gradient against the plain one."""

import pytest
import show_programs

import jaxremat
from jaxremat.planner.decision import Decision


@pytest.mark.parametrize("layers, scan, budget", [(4, False, 0.6), (6, True, 0.7), (2, False, 1.0)])
def test_plans_agree(layers, scan, budget):
    loss, args = show_programs.tower(layers=layers, scan=scan)
    plan = jaxremat.plan(loss, *args, budget=budget, verify="replay")
    check = plan.check_grads(*show_programs.random_like(args))
    assert check.largest_difference <= check.rtol < 1e-3
    assert "agree" in str(check)


def test_a_wrong_gradient_is_refused_by_name(plan, monkeypatch):
    _, args = show_programs.tower()
    emitted = Decision.emitted

    def wrong(decision, primal):
        run = emitted(decision, primal)
        return lambda *inputs: run(inputs[0] * 1.5, *inputs[1:])

    monkeypatch.setattr(Decision, "emitted", wrong)
    with pytest.raises(jaxremat.GradientError, match=r"differs by .* relative"):
        plan.check_grads(*show_programs.random_like(args))


def test_other_shapes_are_refused(plan):
    _, args = show_programs.tower(batch=3)
    with pytest.raises(jaxremat.PlanMismatchError):
        plan.check_grads(*show_programs.random_like(args))
