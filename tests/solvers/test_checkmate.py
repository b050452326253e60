"""Checkmate against all staged schedules of small graphs, against shortest paths, and against its own relaxation."""

import time

import numpy as np
import pytest
from graph_oracles import first_runs_in_order, gradient_chain, replayed, staged_schedules
from hypothesis import given, settings
from hypothesis import strategies as st
from small_graphs import graphs

import jaxremat
from jaxremat import Graph, replay
from jaxremat.solvers import Checkmate, CheckmateLP, Status
from jaxremat.solvers.checkmate_model import memory_entries

PROGRAM = Checkmate(exhaustive_nodes=0)  # never by shortest paths


@settings(max_examples=40, deadline=None, derandomize=True)
@given(graphs(most_nodes=4, pinned=True), st.floats(0, 1))
def test_the_program_is_exact_among_staged_schedules(graph, tightness):
    points = replayed(graph, staged_schedules(graph))
    smallest, plain = min(peak for peak, _ in points), replay(graph, np.arange(graph.num_nodes)).peak_bytes
    budget = smallest + int(tightness * (plain - smallest))
    proposal = PROGRAM.propose(graph, budget, time_limit=20)
    timeline = replay(graph, proposal.schedule)
    assert timeline.peak_bytes <= budget
    assert timeline.cost == min(cost for peak, cost in points if peak <= budget)
    assert proposal.optimal and proposal.lower_bound == timeline.cost


@settings(max_examples=25, deadline=None, derandomize=True)
@given(graphs(most_nodes=4, pinned=True))
def test_the_program_reaches_the_smallest_staged_peak(graph):
    smallest = min(peak for peak, _ in replayed(graph, staged_schedules(graph)))
    assert replay(graph, PROGRAM.propose(graph, smallest - 1, time_limit=20).schedule).peak_bytes == smallest


@settings(max_examples=40, deadline=None, derandomize=True)
@given(graphs(most_nodes=7, pinned=True), st.integers(0, 30))
def test_relaxation_bounds_program_and_program_bounds_rounding(graph, budget):
    exact = Checkmate().propose(graph, budget)
    rounded = CheckmateLP().propose(graph, budget)
    timeline = replay(graph, rounded.schedule)
    assert first_runs_in_order(exact.schedule)  # a rounding leaves out a first run that nobody reads
    if exact.optimal and timeline.peak_bytes <= budget:
        assert timeline.cost >= replay(graph, exact.schedule).cost
    if exact.optimal and rounded.lower_bound is not None and graph.num_nodes <= 4:
        staged = [cost for peak, cost in replayed(graph, staged_schedules(graph)) if peak <= budget]
        assert rounded.lower_bound <= min(staged) + 1e-6


def test_golden_schedule():
    graph = Graph.from_arrays([4, 5, 1, 2, 3], [3, 3, 3, 3, 3], [(0, 1), (1, 2), (0, 3), (2, 3), (3, 4)])
    for solver in (Checkmate(), PROGRAM):
        assert solver.propose(graph, 9, seed=0).schedule.tolist() == [0, 1, 2, 0, 3, 4]


@pytest.mark.parametrize("budget, cost", [(7, 12), (6, 13), (5, 14), (4, 15), (3, 22)])
def test_program_and_shortest_paths_agree_on_a_gradient_chain(budget, cost):
    graph = gradient_chain(6)
    for solver in (Checkmate(exhaustive_nodes=12), PROGRAM):
        solution = jaxremat.solve(graph, budget, solver=solver)
        assert solution.status is Status.OPTIMAL and solution.peak_bytes <= budget
        assert solution.cost == solution.lower_bound == cost


def test_sizes_beyond_32_bits_are_exact():
    unit = 3 * 2**40
    small = gradient_chain(8)
    large = Graph.from_arrays((small.value_bytes * unit).tolist(), small.costs, small.edges)
    cost = replay(small, PROGRAM.propose(small, 7).schedule).cost
    assert replay(large, PROGRAM.propose(large, 8 * unit - 1).schedule).cost == cost
    assert replay(large, PROGRAM.propose(large, 7 * unit).schedule).peak_bytes == 7 * unit


def test_time_limit_is_kept_and_something_is_returned():
    rng = np.random.default_rng(0)
    n = 90
    edges = sorted({(int(rng.integers(max(0, v - 40), v)), v) for v in range(1, n) for _ in range(3)})
    graph = Graph.from_arrays(rng.integers(1, 100, n), rng.integers(1, 9, n), edges)
    budget = int(0.8 * replay(graph, np.arange(n)).peak_bytes)
    for solver in (Checkmate(), CheckmateLP()):
        start = time.perf_counter()
        proposal = solver.propose(graph, budget, time_limit=2)
        assert time.perf_counter() - start < 15
        assert replay(graph, proposal.schedule).cost >= (proposal.lower_bound or 0)


def test_graphs_too_large_for_the_program_get_the_planner_s_answer():
    graph = gradient_chain(40)
    proposal = Checkmate(most_entries=1000).propose(graph, 20)
    assert memory_entries(graph, 20) > 1000
    assert replay(graph, proposal.schedule).peak_bytes <= 20
    assert proposal.lower_bound is None and not proposal.optimal


@pytest.mark.parametrize("solver", [Checkmate(), CheckmateLP()])
def test_chains_are_refused_by_name(solver):
    chain = jaxremat.Chain([1], [1], [1], [1], [1], [0], [0], 1)
    with pytest.raises(jaxremat.ArgumentError, match=solver.name):
        solver.propose(chain, 10)
