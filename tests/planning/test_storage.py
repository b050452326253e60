"""Plans on disk."""

import json

import jax
import jax.numpy as jnp
import pytest
import show_programs

import jaxremat
from jaxremat.__main__ import main
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


def test_other_shapes_are_refused_with_the_difference(plan, tmp_path):
    loss, args = show_programs.tower(layers=5)
    with pytest.raises(jaxremat.PlanMismatchError, match="block_5"):
        jaxremat.load_plan(saved(plan, tmp_path), loss, *args)


def test_a_changed_program_is_refused_with_the_first_difference(plan, tmp_path):
    loss, args = show_programs.tower()
    with pytest.raises(jaxremat.PlanMismatchError, match=r"part at line \d+ of \d+.*Planned: .*Given: .*sin"):
        jaxremat.load_plan(saved(plan, tmp_path), lambda p, x: jnp.sin(loss(p, x)), *args)


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


def test_command_line_plans_shows_and_saves(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(show_programs.__file__.rsplit("/", 1)[0])
    path, page = tmp_path / "plan.json", tmp_path / "plan.html"
    arguments = ["plan", "show_programs:tower_program", "--budget", "0.6", "--verify", "replay"]
    assert main([*arguments, "--save", str(path), "--html", str(page)]) == 0
    assert "Tower/block_" in capsys.readouterr().out
    assert "<svg" in page.read_text()
    assert main(["show", str(path)]) == 0
    out = capsys.readouterr().out
    assert "budget" in out
    assert "Tower/block_*/up" in out
    assert main(["show", str(path), "--program", "show_programs:tower_program"]) == 0
    assert "live bytes" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, reason",
    [
        (["plan", "show_programs:missing", "--budget", "0.5"], "cannot be loaded"),
        (["plan", "show_programs:tower", "--budget", "lots"], "lots"),
        (["plan", "show_programs:tower_program", "--budget", "100", "--verify", "replay"], "no plan fits"),
    ],
)
def test_command_line_errors_are_one_line(arguments, reason, capsys):
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert reason in error
    assert "Traceback" not in error
