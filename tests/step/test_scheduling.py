"""Schedules of steps by replay alone: hills cut, put together, and judged."""

import numpy as np
import pytest
from small_graphs import gradient_chain, random_joint_graph, runs

from jaxremat.graph.graph import Graph
from jaxremat.graph.replay import replay
from jaxremat.solvers import MinCut
from jaxremat.step.scheduling import SolverSearch, StepSearch, in_order, judged, turn_of


def gradients_in_a_row(number, layers=10):
    """Several gradients, one after another, each of the last result of the one before."""
    one, length = gradient_chain(layers), 2 * layers
    edges = [(v + k * length, n + k * length) for k in range(number) for v, n in one.reads.tolist()]
    edges += [(k * length - 1, k * length) for k in range(1, number)]
    total = number * length
    return Graph.from_arrays([8] * total, [1.0] * total, sorted(set(edges)), outputs=[total - 1])


GRAPH = gradients_in_a_row(2)


@pytest.mark.parametrize("share", [0.9, 0.7, 0.5])
def test_what_fits_is_a_replayed_schedule_in_which_every_hill_fits(share):
    search = StepSearch(GRAPH, GRAPH.costs)
    budget = int(share * search.plain.peak_bytes)
    found = search.fit(budget)
    timeline = replay(GRAPH, found.steps)
    assert (found.peak_bytes, found.cost) == (timeline.peak_bytes, timeline.cost)
    assert found.peak_bytes <= budget and set(found.steps.tolist()) == set(range(40))
    again = np.flatnonzero(runs(found.steps, GRAPH) > 1)
    assert again.min() < 20 <= again.max(), "both hills are as high"


def test_what_fits_as_it_stands_is_left_alone():
    search = StepSearch(GRAPH, GRAPH.costs)
    assert search.fit(search.plain.peak_bytes) is search.plain
    assert search.fits_quickly(search.plain.peak_bytes)


def test_nothing_runs_twice_between_two_barriers():
    found = StepSearch(GRAPH, GRAPH.costs).smallest
    for first, end in zip((0, *found.barriers), (*found.barriers, found.steps.size)):
        stretch = found.steps[first:end].tolist()
        assert len(stretch) == len(set(stretch))


@pytest.mark.parametrize("seed", range(3))
def test_what_must_not_run_again_runs_once(seed):
    graph = random_joint_graph(np.random.default_rng(seed), forward=14)
    seconds = np.where(np.arange(graph.num_nodes) % 3 == 0, np.inf, graph.costs)
    found = StepSearch(graph, seconds).smallest
    assert (runs(found.steps, graph)[::3] == 1).all()
    assert found.peak_bytes <= in_order(graph).peak_bytes


def test_a_step_turns_at_the_top_of_its_highest_hill():
    assert turn_of(gradient_chain(10), gradient_chain(10).costs) in (8, 9, 10)


def test_stretches_end_where_nodes_run_first():
    schedule = judged(gradient_chain(3), np.array([0, 1, 2, 3, 0, 4, 5]), (4,))
    ends = np.isin(np.arange(6), (0, 3))
    close = schedule.followed_closely(ends)
    assert close.barriers == (1, 4) and close.barrier_scope == "order", "node 0 runs again at step 4: no end"
    assert schedule.with_sources_behind_barriers().barrier_scope == "sources"
    assert schedule.stretch_by_stretch().barrier_scope == "order" and schedule.barrier_scope == "all"


def test_a_solver_is_asked_once_for_budgets_of_one_grain():
    graph, asked = gradient_chain(64), []

    class Told(MinCut):
        def propose(self, state, budget_bytes, *, seed=0, time_limit=None):
            asked.append(budget_bytes)
            return super().propose(state, budget_bytes, seed=seed, time_limit=time_limit)

    search = SolverSearch(graph, Told(), 0)
    half = search.plain.peak_bytes // 2
    one, times = search.fit(half), len(asked)
    assert one.peak_bytes <= half and np.array_equal(search.fit(half + 1).steps, one.steps) and len(asked) == times
    assert search.fit(search.plain.peak_bytes) is search.plain
    assert len(search.smallest_few()) == 1 and search.in_checkpoints() == []
