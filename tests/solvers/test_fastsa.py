"""FastSA against the truth on tiny graphs, its golden schedule, grouping and polishing."""

import numpy as np
import pytest
from free_order_oracle import least_cost
from graph_oracles import gradient_chain
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxremat import ArgumentError, BudgetError, Graph, replay, solve
from jaxremat.solvers import FastSA, Status
from jaxremat.solvers.deadline import Deadline

QUICK = FastSA(
    temperatures=(3e-3, 1e-2, 3e-2), moves=40_000, reheats=2, reheat_temperatures=(1e-2,), reheat_moves=20_000
)


@st.composite
def plain_graphs(draw):
    n = draw(st.integers(3, 6))
    edges = [(u, v) for v in range(1, n) for u in range(v) if u == v - 1 or draw(st.integers(0, 3)) == 0]
    numbers = lambda: draw(st.lists(st.integers(1, 6), min_size=n, max_size=n))
    return Graph.from_arrays(numbers(), numbers(), edges, outputs=[n - 1] if draw(st.booleans()) else [])


@settings(max_examples=30, deadline=None, derandomize=True)
@given(plain_graphs(), st.sampled_from([0.7, 0.8, 0.9]))
def test_reaches_the_optimum_over_all_orders_on_tiny_graphs(graph, share):
    budget = int(replay(graph, np.arange(graph.num_nodes)).peak_bytes * share)
    truth = least_cost(graph, budget)
    try:
        solution = solve(graph, budget, QUICK)
    except BudgetError as error:
        assert truth is None
        assert least_cost(graph, error.min_peak_bytes) is not None
        assert least_cost(graph, error.min_peak_bytes - 1) is None
    else:
        assert solution.cost == pytest.approx(truth)


def test_reordering_alone_can_be_free_and_is_then_proven_optimal():
    """Two wide branches, listed interleaved: one after the other needs half the memory."""
    graph = Graph.from_arrays([9, 9, 1, 1, 1], [1] * 5, [(0, 2), (1, 3), (2, 4), (3, 4)])
    solution = solve(graph, 11, QUICK)
    assert solution.status is Status.OPTIMAL and solution.cost == solution.lower_bound == 5
    assert solution.schedule.tolist() in ([0, 2, 1, 3, 4], [1, 3, 0, 2, 4])


def test_golden_schedule_recomputes_the_cheap_big_value_just_in_time():
    edges = [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (1, 5)]
    graph = Graph.from_arrays([1, 8, 1, 8, 1, 1], [9, 1, 9, 9, 9, 9], edges)
    assert replay(graph, range(6)).peak_bytes == 17
    solution = solve(graph, 16, QUICK)
    assert solution.schedule.tolist() == [0, 1, 2, 3, 4, 1, 5]
    assert (solution.peak_bytes, solution.cost, solution.lower_bound) == (10, 47, 46)
    with pytest.raises(BudgetError) as caught:
        solve(graph, 9, QUICK)
    assert caught.value.min_peak_bytes == 10


def test_large_graphs_are_annealed_as_groups_first():
    graph = gradient_chain(40)
    solver = FastSA(temperatures=(1e-2,), moves=100_000, reheats=1, reheat_moves=50_000, group_above=16)
    peak = replay(graph, np.arange(graph.num_nodes)).peak_bytes
    solution = solve(graph, peak * 6 // 10, solver)
    assert solution.peak_bytes <= peak * 6 // 10 and solution.cost < 1.6 * graph.costs.sum()


def test_more_than_eight_runs_of_a_node_can_be_a_start():
    graph = gradient_chain(4)
    often = np.concatenate([np.zeros(20, np.int64), np.arange(8)])
    assert QUICK.search(graph, [often], 100, seed=0, deadline=Deadline(None)).schedule.size == 8


def test_parameters_are_checked():
    with pytest.raises(ArgumentError, match="moves"):
        FastSA(moves=0)
    with pytest.raises(ArgumentError, match="temperatures"):
        FastSA(temperatures=(0.0,))
