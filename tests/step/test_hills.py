import numpy as np
import pytest

from jaxremat.graph.graph import Graph
from jaxremat.graph.replay import replay
from jaxremat.graph.valleys import hills
from jaxremat.step.hills import best_cut, section
from jaxremat.step.scheduling import StepSearch


def gradient_graph(layers, size=10, start=0):
    """Edges of `layers` values read in reverse by as many gradients: node i and node 2 layers - 1 - i of a hill."""
    up = [(start + i, start + i + 1) for i in range(layers - 1)]
    down = [(start + layers + i - 1, start + layers + i) for i in range(layers)]
    return up + down + [(start + i, start + 2 * layers - 1 - i) for i in range(layers)]


def two_hills(layers=8):
    edges = [*gradient_graph(layers), (2 * layers - 1, 2 * layers), *gradient_graph(layers, start=2 * layers)]
    number = 4 * layers
    return Graph.from_arrays([10] * number, [1.0] * number, sorted(set(edges)), outputs=[number - 1])


def test_two_hills_are_told_apart_at_half_their_height():
    assert hills(np.asarray([1, 5, 9, 5, 1, 5, 9, 5, 1])) == [(0, 5), (5, 9)]
    assert hills(np.asarray([1, 5, 9, 5, 6, 5, 9, 5, 1])) == [(0, 9)]


def test_hill_below_half_of_the_highest_belongs_to_its_neighbour():
    assert hills(np.asarray([4, 1, 9, 1, 4])) == [(0, 5)]


def test_bumps_of_a_slope_are_no_hills():
    """Each is a little above half of the hills beside it, and nowhere near twice as high as what is around it."""
    slope = [1, 9, 6, 4, 5, 4, 5, 3, 1, 4, 5, 9, 1]
    assert hills(np.asarray(slope)) == [(0, 9), (9, 13)]


def test_nothing_alive_is_one_hill():
    assert hills(np.zeros(3, int)) == [(0, 3)]


@pytest.mark.parametrize(("first", "end"), [(0, 16), (4, 20), (10, 32)])
def test_section_has_the_live_bytes_of_the_whole(first, end):
    graph = two_hills()
    whole = replay(graph, np.arange(graph.num_nodes)).live_bytes[first:end]
    part = section(graph, first, end)
    own = replay(part.graph, np.arange(part.graph.num_nodes)).live_bytes[1:]
    assert (own >= whole).all() and own.max() == whole.max()


def test_cut_is_where_forward_turns_into_backward():
    graph = Graph.from_arrays([10] * 16, [1.0] * 16, sorted(set(gradient_graph(8))), outputs=[15])
    live = replay(graph, np.arange(16)).live_bytes
    cut = best_cut(graph, graph.costs, live)
    assert 7 <= int(cut.backward.argmax()) <= 9


def test_both_hills_are_lowered():
    graph = two_hills(16)
    search = StepSearch(graph, graph.costs)
    found = search.fit(int(0.6 * search.plain.peak_bytes))
    assert found.peak_bytes <= 0.6 * search.plain.peak_bytes
    assert found.peak_bytes == replay(graph, found.steps).peak_bytes
    again = np.flatnonzero(np.bincount(found.steps) > 1)
    assert again.min() < 32 <= again.max()
