"""One cut between forward and backward: what its settings do, and its fast way against asking for every price."""

import dataclasses

import numpy as np
import pytest
from small_graphs import gradient_chain, random_joint_graph, runs

from jaxremat.graph.replay import replay
from jaxremat.solvers.mincut.boundary import BoundarySearch, SearchPoint, crossing_segments, in_two_parts
from jaxremat.solvers.mincut.structure import SEGMENTS


def test_higher_prices_keep_fewer_bytes():
    search = BoundarySearch(gradient_chain(30, widths=5 + np.arange(30) * 7 % 11))
    layouts = [search.at(SearchPoint(price, 4)) for price in (0.0, *np.logspace(-3, 1, 9))]
    costs = [layout.cost for layout in layouts]
    assert costs == sorted(costs) and costs[0] == search.graph.costs.sum() < costs[-1]
    assert layouts[-1].peak_bytes < layouts[0].peak_bytes


def test_what_is_read_before_the_peak_is_kept_for_nothing():
    """A setting names the peak: what the backward has read until then costs nothing to keep, so it is kept."""
    graph = gradient_chain(30)
    search = BoundarySearch(graph)
    everywhere, released = search.at(SearchPoint(1e3)), search.at(SearchPoint(1e3, peak_node=40))
    again = lambda layout: set(np.flatnonzero(runs(layout.steps, graph) > 1).tolist())
    read_late = {v for v in range(29) if 58 - v > 40}
    assert again(released) <= read_late and again(everywhere) >= set(range(29))
    assert released.cost < everywhere.cost


@pytest.mark.parametrize("seed", range(4))
def test_what_fits_costs_no_more_than_where_any_number_of_segments_first_fits(seed):
    """The slow way asks for every listed price, one by one, and refines none."""
    graph = random_joint_graph(np.random.default_rng(seed))
    plain = replay(graph, np.arange(graph.num_nodes)).peak_bytes
    slow = BoundarySearch(graph)
    for budget in (int(share * plain) for share in (0.95, 0.85, 0.75)):
        shapes = [[slow.at(SearchPoint(price, segments)) for price in slow.prices] for segments in SEGMENTS]
        first = [next((each for each in shape if each.peak_bytes <= budget), None) for shape in shapes]
        costs = [layout.cost for layout in first if layout]
        found = BoundarySearch(graph).fit(budget)
        assert (found is None) == (not costs)
        if found:
            assert found.peak_bytes <= budget and found.cost <= min(costs) * (1 + 1e-12)


def test_checkpoints_run_all_but_the_last_segment_twice():
    graph = gradient_chain(16)
    for layout in BoundarySearch(graph).checkpointed():
        again = runs(layout.steps, graph)
        assert set(again[16:].tolist()) == {1} and again[:16].max() <= 2
        kept = again[:16] == 1
        assert kept[-1], "what is read at once is not made again"
    smallest = BoundarySearch(graph).checkpointed()[0]
    assert smallest.peak_bytes < replay(graph, np.arange(32)).peak_bytes / 1.5


def test_checkpoints_of_two_levels_run_values_a_third_time():
    layouts = BoundarySearch(gradient_chain(36)).checkpointed_twice()
    assert [layout.peak_bytes for layout in layouts] == sorted(layout.peak_bytes for layout in layouts)
    assert max(runs(layout.steps, gradient_chain(36)).max() for layout in layouts) == 3


def test_segments_are_crossed_where_they_end():
    """A chain passes one value from each of four segments to the next."""
    structure = BoundarySearch(gradient_chain(16)).structure
    assert crossing_segments(structure, 1).sum() == 0
    assert crossing_segments(structure, 4).sum() == 3


def test_a_graph_without_marks_has_its_backward_after_its_peak():
    marked = gradient_chain(5)
    graph = dataclasses.replace(marked, backward=np.zeros(10, bool))
    assert in_two_parts(marked) is marked
    after = in_two_parts(graph).backward
    assert after.tolist() == (np.arange(10) > replay(graph, np.arange(10)).peak_step).tolist()
