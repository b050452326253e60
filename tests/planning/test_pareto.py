"""The curve, its presets, and progress."""

import io
import itertools

import jax
import pytest
import show_programs

import jaxremat
from jaxremat.show import progress


@pytest.fixture(scope="module")
def front():
    loss, args = show_programs.tower(layers=4)
    keep = jax.checkpoint_policies.save_only_these_names("projection")
    return jaxremat.pareto(loss, *args, budgets=(0.9, 0.65, 0.01), policies={"projections": keep})


def test_points_fall_in_peak_and_rise_in_time(front):
    points = front.points
    assert len(points) >= 3
    assert all(a.peak_bytes > b.peak_bytes and a.overhead <= b.overhead for a, b in itertools.pairwise(points))
    assert points[0].overhead == 0
    assert len(front.unmet) == 1


def test_presets_are_what_checkpoints_do(front):
    none, full, dots, own = front.presets
    assert (none.name, full.name, dots.name, own.name) == ("none", "full", "dots", "projections")
    assert full.peak_bytes < min(own.peak_bytes, dots.peak_bytes) < none.peak_bytes
    assert full.overhead > max(own.overhead, dots.overhead) > none.overhead == 0


def test_best_takes_the_least_time_within_the_budget(front):
    half = 0.7 * front.points[0].peak_bytes
    plan = front.best(int(half))
    assert plan.peak_bytes <= half
    assert plan.overhead == min(p.overhead for p in front.points if p.peak_bytes <= half)
    assert front.best("1GiB").overhead == 0
    with pytest.raises(jaxremat.BudgetError, match="the smallest has") as refusal:
        front.best(10)
    assert refusal.value.min_peak_bytes == front.points[-1].peak_bytes


def test_the_least_is_a_budget_like_others():
    loss, args = show_programs.tower(layers=4)
    front = jaxremat.pareto(loss, *args, budgets=(0.9, "least"))
    smallest = front.points[-1]
    assert front.best("least") is smallest.plan and smallest.peak_bytes == front.least_bytes
    assert front.budgets_bytes[1] == smallest.plan.budget_bytes < front.budgets_bytes[0]
    assert "by hand" in str(front) and front._repr_html_()


def test_it_draws_itself(front):
    assert "by hand: projections" in str(front)
    assert "nothing was found within" in str(front)
    page = front._repr_html_()
    assert page.count("<circle") == len(front.points) + len({(p.peak_bytes, p.overhead) for p in front.presets})


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_draws_in_terminals_and_is_silent_in_logs(monkeypatch):
    log, terminal = io.StringIO(), Terminal()
    monkeypatch.setattr("sys.stderr", log)
    assert list(progress.track([1, 2, 3], "planning")) == [1, 2, 3]
    assert log.getvalue() == ""
    monkeypatch.setattr("sys.stderr", terminal)
    assert list(progress.track([1, 2, 3], "planning")) == [1, 2, 3]
    assert "planning" in terminal.getvalue()
    monkeypatch.setattr(progress, "has_rich", lambda: False)
    terminal.truncate(0)
    assert list(progress.track([1, 2, 3], "planning")) == [1, 2, 3]
    assert "planning [" in terminal.getvalue()
    assert terminal.getvalue().endswith("\r")
