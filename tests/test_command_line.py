"""The command line: what it prints, what it writes, and how it fails."""

import json
import subprocess
import sys

import pytest
import show_programs

import jaxremat
from jaxremat.__main__ import main
from jaxremat.commands import CANNOT_BE_USED, DOES_NOT_FIT, DONE
from jaxremat.planning.selftest import Promise

PLAN = ["plan", "show_programs:tower_program", "--verify", "replay"]


@pytest.fixture(autouse=True)
def programs(monkeypatch):
    monkeypatch.syspath_prepend(show_programs.__file__.rsplit("/", 1)[0])


def broken():
    raise RuntimeError("the data is not there")


def test_it_plans_shows_and_saves(tmp_path, capsys):
    path, page = tmp_path / "plan.json", tmp_path / "plan.html"
    assert main([*PLAN, "--budget", "0.6", "--save", str(path), "--html", str(page)]) == DONE
    assert "Tower/block_" in capsys.readouterr().out
    assert "<svg" in page.read_text()
    assert main(["show", str(path)]) == DONE
    out = capsys.readouterr().out
    assert "budget" in out
    assert "Tower/block_*/up" in out
    assert main(["show", str(path), "--program", "show_programs:tower_program"]) == DONE
    assert "live bytes" in capsys.readouterr().out


def test_json_is_for_machines(tmp_path, capsys):
    path = tmp_path / "plan.json"
    assert main([*PLAN, "--budget", "0.6", "--solver", "chen", "--json", "--save", str(path)]) == DONE
    made = json.loads(capsys.readouterr().out)
    assert made["summary"]["solver"] == "chen"
    assert sum(made["peak"].values()) == made["summary"]["peak_bytes"]
    assert {value["action"] for value in made["values"]} <= {"save", "recompute"}
    assert main(["show", str(path), "--json"]) == DONE
    assert json.loads(capsys.readouterr().out)["summary"]["budget_bytes"] == made["summary"]["budget_bytes"]


@pytest.mark.slow
def test_the_promises_hold_here(capsys):
    assert main(["selftest"]) == DONE
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 12 and all(line.startswith("holds") for line in lines)


def test_a_promise_that_does_not_hold_is_told(monkeypatch, capsys):
    tried = [Promise("saving, schedule", True, "60%"), Promise("gradients, names", False, "differ by 2")]
    monkeypatch.setattr("jaxremat.commands.promises", lambda: iter(tried))
    assert main(["selftest"]) == DOES_NOT_FIT
    told = capsys.readouterr()
    assert "FAILS  gradients, names" in told.out and "1 of 2 promises do not hold" in told.err
    assert main(["selftest", "--json"]) == DOES_NOT_FIT
    assert [promise["holds"] for promise in json.loads(capsys.readouterr().out)] == [True, False]


def test_it_knows_its_version(capsys):
    with pytest.raises(SystemExit) as done:
        main(["--version"])
    assert done.value.code == 0
    assert capsys.readouterr().out.split() == ["jaxremat", jaxremat.__version__]


@pytest.mark.parametrize(
    "arguments, status, reason",
    [
        (["plan", "show_programs:missing", "--budget", "0.5"], CANNOT_BE_USED, "cannot be loaded"),
        (["plan", "no_such_module:f", "--budget", "0.5"], CANNOT_BE_USED, "No module named"),
        (["plan", f"{__name__}:broken", "--budget", "0.5"], CANNOT_BE_USED, "the data is not there"),
        (["plan", "show_programs:tower", "--budget", "lots"], CANNOT_BE_USED, "lots"),
        (["show", "no_such_plan.json"], CANNOT_BE_USED, "no_such_plan.json"),
        (["show", __file__], CANNOT_BE_USED, "is no plan"),
        (["plan", "show_programs:unnamed_program", "--budget", "100"], DOES_NOT_FIT, "no plan fits"),
    ],
)
def test_mistakes_are_told_in_a_sentence(arguments, status, reason, capsys):
    assert main(arguments) == status
    error = capsys.readouterr().err
    assert error.startswith("jaxremat: ")
    assert reason in error
    assert "Traceback" not in error


def test_unknown_options_are_usage_errors(capsys):
    with pytest.raises(SystemExit) as done:
        main([*PLAN, "--budget", "0.5", "--solver", "magic"])
    assert done.value.code == CANNOT_BE_USED
    assert "mincut" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--version", "--help"])
def test_it_tells_its_version_and_its_help_without_loading_jax(option):
    loads = f"from jaxremat.__main__ import main\ntry: main([{option!r}])\nfinally: assert 'jax' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", f"import sys\n{loads}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "jaxremat" in done.stdout


def test_the_package_loads_nothing_until_it_is_asked_for_something():
    asks = "import sys, jaxremat\nassert 'jax' not in sys.modules\njaxremat.trace\nassert callable(jaxremat.trace)"
    done = subprocess.run([sys.executable, "-c", f"{asks}\nassert 'optax' not in sys.modules"], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
