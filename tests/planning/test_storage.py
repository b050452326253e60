"""Plans on disk."""

import json

import jax
import pytest
import show_programs

import jaxremat
from jaxremat.solvers.mincut import search

PROGRAM = {
    "plan": show_programs.tower,
    "loop_plan": lambda: show_programs.tower(layers=8, scan=True),
    "plain_plan": lambda: show_programs.tower(layers=2),
    "unnamed_plan": show_programs.unnamed,
}


@pytest.mark.parametrize("name", PROGRAM)
def test_round_trip_says_and_does_the_same(name, request, tmp_path, monkeypatch):
    plan = request.getfixturevalue(name)
    loss, args = PROGRAM[name]()
    plan.save(tmp_path / "plan.json")
    monkeypatch.setattr(search.Search, "fit", lambda *_: pytest.fail("loading solved"))
    again = jaxremat.load_plan(tmp_path / "plan.json", loss, *args)
    assert str(again) == str(plan)
    program = lambda p: str(jax.make_jaxpr(jax.value_and_grad(p.apply(loss)))(*args))
    assert program(again).count("optimization_barrier") == program(plan).count("optimization_barrier")


def saved(plan, tmp_path):
    path = tmp_path / "plan.json"
    plan.save(path)
    return path


def test_actions_are_readable(plan, tmp_path):
    data = json.loads(saved(plan, tmp_path).read_text())
    assert {action["action"] for action in data["actions"]} == {"save", "recompute", "defer"}
    assert any("Tower/block_3/up" in action["value"] for action in data["actions"])


@pytest.mark.parametrize("length", [0, 1, 200, -30])
def test_truncated_files_are_refused(plan, tmp_path, length):
    path = saved(plan, tmp_path)
    path.write_text(path.read_text()[:length])
    loss, args = show_programs.tower()
    with pytest.raises(jaxremat.PlanMismatchError, match="damaged"):
        jaxremat.load_plan(path, loss, *args)


@pytest.mark.parametrize(
    "key",
    ["decision", "numbers", "listing", "schedule", "actions", "compiled", "format", "version", "solver_parameters"],
)
def test_files_without_a_part_are_refused(plan, tmp_path, key):
    path = saved(plan, tmp_path)
    data = json.loads(path.read_text())
    del data[key]
    path.write_text(json.dumps(data))
    loss, args = show_programs.tower()
    with pytest.raises(jaxremat.PlanMismatchError):
        jaxremat.load_plan(path, loss, *args)
