"""Moccasin: both backends, and the constraint program against enumeration."""

import numpy as np
import pytest
from free_order_oracle import least_cost
from graph_oracles import first_runs_in_order, gradient_chain, replayed, staged_schedules
from hypothesis import given, settings
from small_graphs import graphs

from jaxremat import ArgumentError, replay, solve
from jaxremat.solvers import FastSA, Moccasin, Status
from jaxremat.solvers.moccasin_model import improve_by_intervals

QUICK = FastSA(temperatures=(1e-2, 3e-2), moves=20_000, reheats=1, reheat_temperatures=(1e-2,), reheat_moves=10_000)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(graphs(most_nodes=4, pinned=True))
def test_intervals_are_exact_for_one_order(graph):
    """With as many copies as stages, CP-SAT finds what enumeration finds, of schedules that end with a first run."""
    pytest.importorskip("ortools")
    listed = np.arange(graph.num_nodes)
    points = replayed(graph, (steps for steps in staged_schedules(graph) if steps[-1] == listed[-1]))
    budget = max(min(replay(graph, listed).peak_bytes - 1, max(peak for peak, _ in points)), 1)
    truth = min((cost for peak, cost in points if peak <= budget), default=None)
    improved = improve_by_intervals(graph, listed, budget, copies=5, effort=5.0, time_limit=None, seed=0)
    timeline = replay(graph, improved.schedule)
    if truth is None:
        assert not improved.optimal
    else:
        assert improved.optimal and timeline.peak_bytes <= budget and timeline.cost == pytest.approx(truth)


@pytest.mark.parametrize("backend", ["cp-sat", "search"])
def test_backends_agree_on_a_gradient_chain(backend):
    if backend == "cp-sat":
        pytest.importorskip("ortools")
    graph = gradient_chain(4)
    solution = solve(graph, 4, Moccasin(backend=backend, search=QUICK))
    assert solution.peak_bytes <= 4 and solution.cost == least_cost(graph, 4) > 8
    assert solution.status is (Status.OPTIMAL if backend == "cp-sat" else Status.FEASIBLE)
    assert np.bincount(solution.schedule).max() <= 2


def test_the_given_order_is_kept_by_the_exact_part():
    pytest.importorskip("ortools")
    graph = gradient_chain(6)
    improved = improve_by_intervals(graph, np.arange(12), 6, copies=2, effort=2.0, time_limit=None, seed=0)
    assert first_runs_in_order(improved.schedule) and replay(graph, improved.schedule).peak_bytes <= 6


def test_unknown_backends_are_told_the_names():
    with pytest.raises(ArgumentError, match="cp-sat, search"):
        Moccasin(backend="gurobi")
