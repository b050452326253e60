import pytest
import step_programs

import jaxremat


@pytest.fixture(scope="module")
def planned():
    step, args = step_programs.deep(8, 2048)
    jitted = jaxremat.jit(step, budget=0.7, donate_argnums=0, verify="replay")
    return jitted, args, jitted.plan(*args)


def test_plan_says_who_holds_what(planned):
    _, _, plan = planned
    text, page = str(plan), plan._repr_html_()
    assert "parameters (params), donated" in text and "batch (x)" in text
    assert "<svg" in page and "params" in page
    held = {group.name: group.size_bytes for group in plan.arguments}
    assert held == {"params": 8 * 4 * 64 * 64, "x": 4 * 2048 * 64}
    assert plan.summary()["argument_bytes_by_path"] == held
    assert plan.explain().startswith("all values")


def test_plan_from_a_file_emits_the_same_program_and_solves_nothing(planned, tmp_path, monkeypatch):
    jitted, args, plan = planned
    plan.save(tmp_path / "plan.json")
    step, _ = step_programs.deep(8, 2048)
    other = jaxremat.jit(step, budget=0.7, donate_argnums=0, verify="replay")
    monkeypatch.setattr("jaxremat.step.planning.StepPlanning.plan", None)
    read = other.load_plan(tmp_path / "plan.json", *args)
    assert read.decision == plan.decision
    assert read.budget_bytes == plan.budget_bytes
    assert str(other.trace(*args).jaxpr) == str(jitted.trace(*args).jaxpr)


def test_plan_for_another_step_is_refused_with_the_difference(planned, tmp_path):
    _, _, plan = planned
    plan.save(tmp_path / "plan.json")
    step, args = step_programs.deep(8, 1024)
    with pytest.raises(jaxremat.PlanMismatchError, match=r"x float32\[2048,64\], given x float32\[1024,64\]"):
        jaxremat.jit(step, budget=0.7, donate_argnums=0).load_plan(tmp_path / "plan.json", *args)
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(jaxremat.PlanMismatchError, match="damaged"):
        jaxremat.jit(step, budget=0.7, donate_argnums=0).load_plan(tmp_path / "plan.json", *args)
