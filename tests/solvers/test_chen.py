"""Chen's planner: the paper's bounds on chains, and schedules that can be run on every graph."""

import math

import numpy as np
import pytest
from graph_oracles import first_runs_in_order, gradient_chain
from hypothesis import given, settings
from hypothesis import strategies as st
from small_graphs import graphs

import jaxremat
from jaxremat import Graph, replay
from jaxremat.solvers import Chen, ChenRecursive, Status
from jaxremat.solvers.segments import FrontNodes, segmented_schedule

PLANNERS = (Chen(), ChenRecursive())


def marked(graph, first_backward):
    fields = {name: getattr(graph, name) for name in graph.__dataclass_fields__}
    return Graph(**(fields | {"backward": np.arange(graph.num_nodes) >= first_backward}))


@pytest.mark.parametrize("mark", [False, True])
@pytest.mark.parametrize("length", [16, 64])
def test_chains_meet_the_bounds_of_the_paper(length, mark):
    graph = marked(gradient_chain(length), length) if mark else gradient_chain(length)
    flat = replay(graph, Chen().propose(graph, 2 * math.isqrt(length) + 4).schedule)
    assert flat.peak_bytes <= 2 * length**0.5 + 4
    assert flat.cost - 2 * length <= length
    nested = replay(graph, ChenRecursive().propose(graph, int(2 * math.log2(length)) + 4).schedule)
    assert nested.peak_bytes <= 2 * math.log2(length) + 4
    assert nested.cost - 2 * length <= length * math.log2(length)


def test_one_flat_split_runs_the_forward_once_more():
    """Four segments of four: their ends are kept, each other layer but those of the last segment runs twice."""
    graph = gradient_chain(16)
    front = FrontNodes(graph, turn=15)
    schedule = segmented_schedule(front, lambda base, end: [3, 7, 11] if end == 15 else [])
    rerun = [node for node in schedule.tolist() if schedule.tolist().count(node) > 1]
    assert sorted(set(rerun)) == [0, 1, 2, 4, 5, 6, 8, 9, 10]
    assert replay(graph, schedule).cost == 32 + 9
    assert schedule.tolist()[20:24] == [8, 9, 10, 20]


@pytest.mark.parametrize("planner", PLANNERS)
@settings(max_examples=30, deadline=None, derandomize=True)
@given(graph=graphs(most_nodes=9, pinned=True), budget=st.integers(0, 30))
def test_every_graph_gets_a_schedule_that_runs(planner, graph, budget):
    schedule = planner.propose(graph, budget).schedule
    timeline, plain = replay(graph, schedule), replay(graph, np.arange(graph.num_nodes))
    assert first_runs_in_order(schedule)
    assert timeline.peak_bytes <= max(plain.peak_bytes, budget)
    assert all(np.count_nonzero(schedule == node) == 1 for node in np.flatnonzero(graph.pinned))


@pytest.mark.parametrize("planner", PLANNERS)
def test_costs_fall_as_budgets_grow_and_equal_calls_agree(planner):
    graph = gradient_chain(24)
    costs = []
    for budget in (12, 15, 22):
        schedule = planner.propose(graph, budget).schedule
        assert np.array_equal(schedule, planner.propose(graph, budget).schedule)
        timeline = replay(graph, schedule)
        assert timeline.peak_bytes <= budget
        costs.append(timeline.cost)
    assert costs == sorted(costs, reverse=True) and costs[-1] < costs[0]


def u_net(depth):
    """A contracting and an expanding path with skips between them, and the backward of both."""
    n = 2 * depth
    forward = {(i, i + 1) for i in range(n - 1)} | {(i, n - 1 - i) for i in range(depth - 1)}
    backward = {(2 * n - 1 - v, 2 * n - 1 - u) for u, v in forward}
    needed = {(u, 2 * n - 1 - v) for u, v in forward} | {(n - 1, n)}
    size = [2 ** abs(depth - i) for i in range(n)]
    return Graph.from_arrays(size + size[::-1], [1] * n + [2] * n, sorted(forward | backward | needed))


@pytest.mark.parametrize("planner", PLANNERS)
def test_skip_connections_are_kept_or_made_again(planner):
    graph = u_net(6)
    plain = replay(graph, np.arange(graph.num_nodes))
    solution = jaxremat.solve(graph, int(0.9 * plain.peak_bytes), solver=planner)
    assert solution.status is Status.FEASIBLE
    assert solution.cost <= 1.3 * plain.cost


def test_dear_layers_are_kept_and_cheap_ones_run_again():
    """Alternating convolutions (dear) and activations (cheap), equal sizes: half the budget costs little."""
    graph = gradient_chain(64)
    dear = np.where(np.arange(128) % 2 == 0, 100.0, 1.0)
    mixed = Graph.from_arrays(graph.value_bytes, dear, graph.edges)
    solution = jaxremat.solve(mixed, 40, solver="chen")
    assert solution.cost <= 1.02 * dear.sum()


@pytest.mark.parametrize("planner", PLANNERS)
def test_sizes_beyond_32_bits_and_impossible_budgets(planner):
    unit = 5 * 2**33
    graph = gradient_chain(20)
    large = Graph.from_arrays((graph.value_bytes * unit).tolist(), graph.costs, graph.edges)
    assert np.array_equal(planner.propose(graph, 12).schedule, planner.propose(large, 12 * unit).schedule)
    with pytest.raises(jaxremat.BudgetError) as refused:
        jaxremat.solve(large, unit, solver=planner)
    floor = refused.value.min_peak_bytes
    assert jaxremat.solve(large, floor, solver=planner).peak_bytes == floor


@pytest.mark.parametrize("planner", PLANNERS)
def test_a_plain_schedule_that_fits_is_optimal(planner):
    graph = gradient_chain(5)
    solution = jaxremat.solve(graph, 10, solver=planner)
    assert solution.status is Status.OPTIMAL
    assert solution.schedule.tolist() == list(range(10))
    assert solution.lower_bound == 10


@pytest.mark.parametrize("planner", PLANNERS)
def test_chains_are_refused_by_name(planner):
    chain = jaxremat.Chain([1], [1], [1], [1], [1], [0], [0], 1)
    with pytest.raises(jaxremat.ArgumentError, match=planner.name):
        planner.propose(chain, 10)
