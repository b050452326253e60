"""Cuts at the peak: what comes out of one cut, and what a search of many keeps."""

import numpy as np
import pytest
from small_graphs import gradient_chain, random_joint_graph, runs

from jaxremat.graph.replay import replay
from jaxremat.solvers.mincut.layout import in_order, lay_out
from jaxremat.solvers.mincut.peaks import PeakCut, PeakSearch


def graph_of(seed):
    return random_joint_graph(np.random.default_rng(seed), forward=12, pinned=2)


@pytest.mark.parametrize("seed", range(4))
def test_what_comes_out_of_a_cut_is_a_schedule_with_the_numbers_of_its_replay(seed):
    graph = graph_of(seed)
    layouts = list(PeakCut(graph, in_order(graph)).everywhere())
    for layout in layouts:
        timeline = replay(graph, layout.steps)
        assert (layout.peak_bytes, layout.cost, layout.peak_step) == (
            timeline.peak_bytes,
            timeline.cost,
            timeline.peak_step,
        )
        assert (runs(layout.steps, graph)[graph.pinned] == 1).all()
        assert graph.backward[layout.steps[layout.start :]].any()
        assert not graph.backward[layout.steps[: layout.start]].any()
    assert len({layout.steps.tobytes() for layout in layouts}) > 1


def test_a_cut_of_a_cut_goes_below_one_cut():
    graph = gradient_chain(24)
    once = min(PeakCut(graph, in_order(graph)).everywhere(), key=lambda layout: layout.peak_bytes)
    twice = min(PeakCut(graph, once).everywhere(), key=lambda layout: layout.peak_bytes)
    assert twice.peak_bytes < once.peak_bytes < in_order(graph).peak_bytes


def test_refining_finds_a_cheaper_one_that_fits():
    graph = gradient_chain(24, widths=5 + np.arange(24) * 7 % 11)
    cut = PeakCut(graph, in_order(graph))
    layouts = list(cut.everywhere())
    budget = int(0.7 * in_order(graph).peak_bytes)
    enough = min((each for each in layouts if each.peak_bytes <= budget), key=lambda each: each.cost)
    refined = enough.origin.cut.refined(budget, enough)
    assert refined.peak_bytes <= budget and refined.cost <= enough.cost


@pytest.mark.parametrize("seed", range(3))
def test_no_schedule_on_the_front_beats_another(seed):
    search = PeakSearch(graph_of(seed), in_order(graph_of(seed)))
    least = search.smallest
    front = search.front()
    assert front[0] is least or front[0].peak_bytes == least.peak_bytes
    peaks, costs = [each.peak_bytes for each in front], [each.cost for each in front]
    assert peaks == sorted(set(peaks)) and costs == sorted(set(costs), reverse=True)


def test_a_schedule_that_is_handed_in_may_be_the_answer():
    graph = gradient_chain(8)
    search = PeakSearch(graph, in_order(graph))
    steps = np.arange(16)
    given = lay_out(graph, steps, 8, origin=None)
    assert search.fit(given.peak_bytes).cost == given.cost
    below = search.smallest
    other = PeakSearch(graph, in_order(graph))
    other.add([below])
    assert other.fit(below.peak_bytes).cost <= below.cost
