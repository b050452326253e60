"""Facts about a joint graph, against their definitions."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from small_graphs import gradient_chain, graphs, random_joint_graph

from jaxremat.graph.graph import Graph
from jaxremat.solvers.mincut.structure import Structure


@settings(max_examples=80, deadline=None, derandomize=True)
@given(graphs(most_nodes=9, backward=True))
def test_readers_in_forward_and_backward(graph):
    structure = Structure(graph)
    n = graph.num_nodes
    for value in range(graph.num_values):
        late = [r for r in graph.readers[value] if graph.backward[r]]
        early = [r for r in graph.readers[value] if not graph.backward[r]]
        forward = not graph.backward[graph.producer[value]]
        assert structure.is_forward_value[value] == forward
        assert graph.first_backward_read[value] == min(late, default=n)
        assert structure.needed[value] == (forward and bool(late))
        assert structure.last_forward_read[value] == max([int(graph.producer[value]), *early])


def crossing_by_definition(graph, structure, end):
    """Forward values that pass from nodes up to one to later forward ones, cheap ones aside."""
    crosses = (graph.producer <= end) & (structure.last_forward_read > end)
    return crosses & structure.is_forward_value & ~structure.is_cheap


@pytest.mark.parametrize("seed", range(5))
def test_crossing_bytes_are_what_passes_each_node(seed):
    graph = random_joint_graph(np.random.default_rng(seed))
    structure = Structure(graph)
    for k, node in enumerate(structure.forward_nodes.tolist()):
        crosses = crossing_by_definition(graph, structure, node)
        assert structure.crossing_bytes[k] == graph.value_bytes[crosses].sum()
    some = np.asarray([4, 11])
    both = crossing_by_definition(graph, structure, 4) | crossing_by_definition(graph, structure, 11)
    assert structure.crossing_values(some).tolist() == both.tolist()
    assert not structure.crossing_values(np.zeros(0, np.int64)).any()


@pytest.mark.parametrize("segments", [1, 2, 3, 5, 8, 40])
def test_boundaries_part_the_bytes_evenly(segments):
    graph = gradient_chain(40, value_bytes=10)
    ends = Structure(graph).boundaries(segments)
    assert (np.diff(ends) > 0).all() and ends.size <= segments - 1
    lengths = np.diff([-1, *ends.tolist(), 39])
    assert ends.size == segments - 1 if segments < 20 else ends.size >= 20
    assert lengths.max() <= 2 * 40 / segments


def test_boundaries_lie_at_narrow_places():
    """Blocks of wide layers with a narrow one at the end of each."""
    widths = np.tile([50, 60, 55, 2], 6)
    ends = Structure(gradient_chain(24, widths=widths)).boundaries(6)
    assert ends.size == 5 and (widths[ends] == 2).all()


def test_what_inputs_give_almost_for_free_is_cheap():
    """Nodes 0 and 1 cost next to nothing; node 3 reads only them, but it is dear; node 4 reads what is dear."""
    edges = [(0, 1), (1, 3), (2, 4), (3, 5), (4, 5), (1, 4)]
    graph = Graph.from_arrays([4] * 6, [0, 1e-4, 5, 5, 1e-4, 5], edges)
    assert Structure(graph).is_cheap.tolist() == [True, True, False, False, False, False]


def test_a_chain_of_squares_of_a_cheap_value_is_cheap():
    """What is made by few cheap nodes is cheap, by however many paths it reads them."""
    length = 60
    squares = Graph.from_arrays([4] * length, [1e-4] * (length - 1) + [100], [(i, i + 1) for i in range(length - 1)])
    twice = dataclasses.replace(squares, value_bytes=np.full(2 * length, 4), is_output=np.zeros(2 * length, bool),
        producer=np.repeat(np.arange(length), 2).astype(np.int32),
        reads=np.asarray([(v, v // 2 + 1) for v in range(2 * length - 2)], np.int32))  # fmt: skip
    assert Structure(twice).is_cheap[:-2].all()


def test_cheap_values_do_not_count_as_crossing():
    graph = Graph.from_arrays([100, 1, 1, 1], [0, 5, 5, 5], [(0, 1), (1, 2), (2, 3), (0, 3)])
    structure = Structure(graph)
    assert structure.crossing_bytes.tolist() == [0, 1, 1, 0]
    assert np.flatnonzero(structure.crossing_values(np.asarray([1]))).tolist() == [1]


def test_blocks_end_where_half_as_much_passes_on():
    widths = np.asarray([9, 9, 4, 9, 9, 1, 9, 9, 4, 9, 9])
    structure = Structure(gradient_chain(widths.size, widths=widths))
    assert structure.blocks[structure.forward_nodes].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3]
    assert (structure.blocks[structure.graph.backward] == -1).all()


def test_a_chain_of_one_width_has_no_blocks():
    assert (Structure(gradient_chain(8, value_bytes=10)).blocks == -1).all()


def test_the_narrowest_place_is_the_last_after_which_least_passes_on():
    graph = gradient_chain(6, widths=np.asarray([5, 2, 7, 2, 2, 9]))
    structure = Structure(graph)
    assert structure.narrowest(0, 3) == (1, 2) and structure.narrowest(0, 5) == (4, 2)
    assert structure.narrowest(2, 3) == (2, 7)


def test_boundaries_part_the_forward():
    structure = Structure(gradient_chain(5, value_bytes=10))
    assert structure.parted(np.asarray([1, 3])).tolist() == [0, 0, 1, 1, 2] + [-1] * 5
    assert structure.parted(np.zeros(0, np.int64)).tolist() == [-1] * 10
