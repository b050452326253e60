"""The exact replay against the definition: any graph, any order, any repeats."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_graphs import gradient_chain, graphs, schedules, slow_replay

from jaxremat.base.errors import GraphError
from jaxremat.graph.graph import Graph
from jaxremat.graph.replay import link, replay
from jaxremat.solvers.dead_runs import needed_runs


@st.composite
def cases(draw):
    graph = draw(graphs())
    return graph, draw(schedules(graph))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(cases())
def test_replay_is_the_definition(case):
    graph, schedule = case
    timeline = replay(graph, schedule)
    live, live_bytes = slow_replay(graph, schedule)
    assert timeline.live_bytes.tolist() == live_bytes
    assert [set(timeline.live_values(t).tolist()) for t in range(len(schedule))] == live
    assert timeline.peak_bytes == max(live_bytes) == live_bytes[timeline.peak_step]
    assert timeline.cost == sum(float(graph.costs[node]) for node in schedule)
    assert timeline.schedule.tolist() == schedule


@settings(max_examples=150, deadline=None, derandomize=True)
@given(graphs(most_nodes=4), st.lists(st.integers(-1, 4), max_size=7))
def test_replay_refuses_exactly_what_cannot_run(graph, schedule):
    try:
        slow_replay(graph, schedule)
    except ValueError:
        with pytest.raises(GraphError):
            replay(graph, schedule)
    else:
        assert replay(graph, schedule).live_bytes.size == len(schedule)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(cases())
def test_spans_cover_every_production_once(case):
    graph, schedule = case
    timeline = replay(graph, schedule)
    value, first, last = timeline.spans.T
    assert sorted(first.tolist()) == sorted(t for t, node in enumerate(schedule) for _ in graph.values_of[node])
    assert (graph.producer[value] == np.asarray(schedule)[first]).all() and (first <= last).all()
    assert np.array_equal(timeline.span_bytes, graph.value_bytes[value])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(cases())
def test_links_outlive_the_removal_of_dead_runs(case):
    graph, schedule = case
    steps = np.asarray(schedule)
    links = link(graph, steps)
    needed = needed_runs(graph, steps, links)
    left, anew = links.among(needed), link(graph, steps[needed])
    for field in dataclasses.fields(left):
        np.testing.assert_array_equal(getattr(left, field.name), getattr(anew, field.name))


def test_what_is_produced_again_before_it_is_read_is_not_held_between():
    graph = Graph.from_arrays([8, 1, 1], [1, 1, 1], [(0, 1), (0, 2)], outputs=[1, 2])
    assert replay(graph, [0, 1, 2]).live_bytes.tolist() == [8, 9, 10]
    assert replay(graph, [0, 1, 0, 2]).live_bytes.tolist() == [8, 9, 9, 10]
    assert replay(graph, [0, 0, 1, 2]).live_bytes.tolist() == [8, 8, 9, 10]


def test_a_chain_by_hand():
    """Four layers and their gradients of 8 bytes each; the first layer kept, then run again for its reader."""
    graph = gradient_chain(4)
    assert replay(graph, range(8)).live_bytes.tolist() == [8, 16, 24, 32, 40, 40, 32, 24]
    assert replay(graph, [0, 1, 2, 3, 4, 5, 0, 6, 7]).live_bytes.tolist() == [8, 16, 16, 24, 32, 32, 24, 32, 24]


def test_sizes_beyond_31_bits_are_exact():
    graph = Graph.from_arrays([2**40 + 1, 2**41 + 3], [1, 1], [(0, 1)], resident_bytes=5)
    assert replay(graph, [0, 1]).peak_bytes == 2**40 + 2**41 + 9


def test_messages_name_the_step_and_the_node():
    graph = Graph.from_arrays([1, 1, 1], [1, 1, 1], [(0, 1), (1, 2)])
    with pytest.raises(GraphError, match="step 1 runs node 2 before its input, node 1"):
        replay(graph, [0, 2, 1])
    with pytest.raises(GraphError, match="1 nodes never run, among them node 2"):
        replay(graph, [0, 1])
    with pytest.raises(GraphError, match=r"nodes 0\.\.2"):
        replay(graph, [0, 1, 3])
    with pytest.raises(GraphError, match="got 0 steps"):
        replay(graph, [])


def test_workspace_and_resident_bytes_count_where_they_are():
    graph = dataclasses.replace(gradient_chain(2), workspace_bytes=np.array([0, 100, 0, 0]), resident_bytes=1000)
    bare = replay(gradient_chain(2), range(4)).live_bytes
    assert (replay(graph, range(4)).live_bytes - bare).tolist() == [1000, 1100, 1000, 1000]
