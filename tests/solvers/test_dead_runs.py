"""Runs that nobody needs, against removing one run after another."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from small_graphs import graphs

from jaxremat.graph.graph import Graph
from jaxremat.graph.replay import replay
from jaxremat.solvers.dead_runs import without_dead_runs


def slowly_without_dead_runs(graph, schedule):
    """From the end on, leaves out each run of a node that also runs elsewhere and whose values nobody reads before they
    are made again; outputs are read at the end."""
    steps = list(map(int, schedule))
    found = True
    while found:
        found = False
        for step in range(len(steps) - 1, -1, -1):
            node, later = steps[step], steps[step + 1 :]
            until = later.index(node) if node in later else len(later)
            values = set(graph.values_of[node])
            is_read = any(values & set(graph.values_read[reader]) for reader in later[: until + 1])
            is_kept = node not in later and any(graph.is_output[value] for value in values)
            if steps.count(node) > 1 and not is_read and not is_kept:
                del steps[step]
                found = True
                break
    return steps


@settings(max_examples=40, deadline=None, derandomize=True)
@given(graphs(most_nodes=5, pinned=True), st.lists(st.integers(0, 4), max_size=12))
def test_removing_dead_runs_costs_nothing(graph, again):
    schedule = np.array([*range(graph.num_nodes), *(k for k in again if k < graph.num_nodes and not graph.pinned[k])])
    before, shorter = replay(graph, schedule), without_dead_runs(graph, schedule)
    after = replay(graph, shorter)
    assert after.peak_bytes <= before.peak_bytes and after.cost <= before.cost
    assert without_dead_runs(graph, shorter).size == shorter.size


@settings(max_examples=60, deadline=None, derandomize=True)
@given(graphs(most_nodes=5), st.lists(st.integers(0, 4), max_size=10))
def test_what_is_left_is_what_is_left_one_by_one(graph, again):
    schedule = np.array([*range(graph.num_nodes), *(k for k in again if k < graph.num_nodes)])
    assert without_dead_runs(graph, schedule).tolist() == slowly_without_dead_runs(graph, schedule)


def test_a_first_run_that_is_made_again_before_it_is_read_goes():
    graph = Graph.from_arrays([1, 1, 1], [1, 1, 1], [(0, 2)])
    assert without_dead_runs(graph, np.array([0, 1, 0, 2])).tolist() == [1, 0, 2]


def test_what_a_dead_run_alone_reads_goes_with_it():
    graph = Graph.from_arrays([1, 1], [1, 1], [(0, 1)])
    assert without_dead_runs(graph, np.array([0, 1, 0, 1])).tolist() == [0, 1]
