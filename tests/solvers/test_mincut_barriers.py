"""Where barriers stand: what runs again lies behind one, and nothing runs twice between two."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_graphs import gradient_chain, graphs, schedules

from jaxremat.solvers.mincut.barriers import barriers_at_turns, barriers_between, before_what_ends

_OF_NODES = ("costs", "workspace_bytes", "value_bytes", "pinned")


@st.composite
def questions(draw):
    graph = draw(graphs(most_nodes=6, backward=True))
    steps = np.asarray(draw(schedules(graph)))
    late = np.flatnonzero(graph.backward[steps])
    start = int(late[0])
    part = np.asarray(draw(st.lists(st.integers(0, 3), min_size=graph.num_nodes, max_size=graph.num_nodes)))
    return graph, steps, start, np.sort(part)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(questions())
def test_nothing_runs_twice_between_two_barriers(question):
    graph, steps, start, part = question
    barriers = barriers_between(graph, steps, start, part)
    assert list(barriers) == sorted(set(barriers))
    for first, end in zip((0, *barriers), (*barriers, steps.size)):
        stretch = steps[first:end].tolist()
        assert len(stretch) == len(set(stretch))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(questions())
def test_a_first_barrier_stands_before_all_that_runs_again(question):
    graph, steps, start, part = question
    barriers = barriers_between(graph, steps, start, part)
    ran = set()
    for step, node in enumerate(steps.tolist()):
        if node in ran:
            assert barriers and barriers[0] <= step
        ran.add(node)


def test_one_part_has_one_barrier_and_two_have_two():
    """Layers 1 and 2 run again for the backward of each: in one part as one stretch, in two parts as two."""
    graph = gradient_chain(4)
    steps = np.array([0, 1, 2, 3, 2, 4, 5, 1, 6, 7])
    assert barriers_between(graph, steps, 4, np.zeros(8, int)) == (4,)
    assert barriers_between(graph, steps, 4, np.array([0, 0, 1, 1, 1, 1, 0, 0])) == (4, 7)


def test_what_inputs_alone_give_in_the_backward_lies_in_no_part():
    """Zeros that the backward of layer 2 reads, which stand behind all layers: layers 1 and 2 run again as before."""
    graph = gradient_chain(4)
    reads = np.where(graph.reads > 4, graph.reads + 1, graph.reads)  # node 5 makes zeros
    with_zeros = dataclasses.replace(
        graph,
        **{name: np.insert(getattr(graph, name), 5, getattr(graph, name)[4]) for name in _OF_NODES},
        producer=np.arange(9, dtype=np.int32),
        reads=np.concatenate([reads, [[5, 6]]]).astype(np.int32),
        is_output=np.insert(graph.is_output, 5, False),
        backward=np.insert(graph.backward, 5, False),
        rerun_surcharge=np.zeros(9),
        keep_costs=np.zeros(9),
    )
    steps = np.array([0, 1, 2, 3, 1, 2, 4, 5, 6, 7, 8])
    part = np.array([0, 0, 0, 1, 1, 1, 0, 0, 0])
    assert barriers_between(with_zeros, steps, 4, part) == (4,)


@pytest.mark.parametrize("ends", [(), (5,)])
def test_schedules_turn_where_they_go_back_and_where_the_backward_begins(ends):
    graph = gradient_chain(4)
    steps = np.array([0, 1, 2, 3, 4, 5, 1, 2, 6, 7])
    found = barriers_at_turns(graph, steps, np.isin(np.arange(8), ends))
    assert found == (4, 6, 8), "the backward begins, layer 1 runs again, and the backward goes on"
    after = barriers_at_turns(graph, steps, np.isin(np.arange(8), (*ends, 4)))
    assert after == (4, 5, 6, 8)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(questions())
def test_what_moves_behind_a_barrier_leads_nowhere_and_reads_nothing_else(question):
    graph, steps, start, part = question
    values_of = lambda nodes: {v for v in range(graph.num_values) if graph.producer[v] in nodes}
    read_by = lambda nodes: {value for node in nodes for value in graph.values_read[node]}
    for barrier in barriers_between(graph, steps, start, part):
        place = before_what_ends(graph, steps, barrier)
        assert min(start, barrier) <= place <= barrier
        moved, behind = steps[place:barrier].tolist(), steps[barrier:].tolist()
        assert values_of(moved).isdisjoint(read_by(behind))
        assert read_by(moved) <= read_by(behind) | values_of(moved)
