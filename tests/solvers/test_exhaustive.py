"""Shortest paths over live values, against every order with repetitions."""

import itertools

import numpy as np
from graph_oracles import first_runs_in_order, replayed
from hypothesis import given, settings
from small_graphs import graphs

from jaxremat.graph.graph import Graph
from jaxremat.graph.replay import replay
from jaxremat.solvers.exhaustive import cheapest_schedule, smallest_schedule


@settings(max_examples=15, deadline=None, derandomize=True)
@given(graphs(most_nodes=3, pinned=True))
def test_shortest_paths_are_exact_among_all_repetitions(graph):
    n = graph.num_nodes
    orders = itertools.chain.from_iterable(itertools.product(range(n), repeat=length) for length in range(n, n + 4))
    kept = (s for s in orders if first_runs_in_order(s) and all(s.count(p) == 1 for p in np.flatnonzero(graph.pinned)))
    points = replayed(graph, kept)
    smallest = min(peak for peak, _ in points)
    assert replay(graph, smallest_schedule(graph)).peak_bytes == smallest
    for budget in {peak for peak, _ in points}:
        cheapest = replay(graph, cheapest_schedule(graph, budget))
        assert cheapest.peak_bytes <= budget
        assert cheapest.cost == min(cost for peak, cost in points if peak <= budget)
    assert cheapest_schedule(graph, smallest - 1) is None


def test_a_cheap_large_value_is_made_again_rather_than_held():
    graph = Graph.from_arrays([4, 5, 1, 2, 3], [3, 3, 3, 3, 3], [(0, 1), (1, 2), (0, 3), (2, 3), (3, 4)])
    assert cheapest_schedule(graph, 9).tolist() == [0, 1, 2, 0, 3, 4]
    assert cheapest_schedule(graph, 10).tolist() == [0, 1, 2, 3, 4]
