"""Several chains on one graph: judged by the replay, pinned nodes in order, the best never lost."""

import dataclasses

import numpy as np
import pytest
from small_graphs import gradient_chain, random_joint_graph

from jaxremat.graph.replay import replay
from jaxremat.solvers.annealing_chains import AnnealingChains, Cooling, Evaluated, evaluated, least_cost
from jaxremat.solvers.deadline import Deadline

COOLING = Cooling(0.1, 0.01, 4_000)


def annealed(graph, budget, *, chains=2, seed=0):
    starts = [np.arange(graph.num_nodes)] * chains
    return AnnealingChains(graph, 4).anneal(starts, [COOLING] * chains, budget, seed=seed, deadline=Deadline(None))


@pytest.mark.parametrize("pinned", [0, 4])
def test_what_comes_back_is_what_a_replay_says(pinned):
    graph = random_joint_graph(np.random.default_rng(3), forward=8, pinned=pinned)
    budget = int(0.9 * replay(graph, np.arange(graph.num_nodes)).peak_bytes)
    for found in annealed(graph, budget):
        timeline = replay(graph, found.schedule)
        assert (found.peak_bytes, found.cost) == (timeline.peak_bytes, timeline.cost)
        firsts = [node for node in found.schedule.tolist() if graph.pinned[node]]
        assert firsts == np.flatnonzero(graph.pinned).tolist(), "effects happen once and in order"


def test_no_chain_ends_worse_than_it_began():
    graph = gradient_chain(8)
    plain = evaluated(graph, np.arange(16))
    for found in annealed(graph, 48):
        assert found.key(48) <= plain.key(48)


def test_equal_seeds_give_equal_schedules():
    graph = random_joint_graph(np.random.default_rng(1), forward=8)
    one, again = ([found.schedule.tolist() for found in annealed(graph, 60, seed=4)] for _ in range(2))
    assert one == again and len(one) == 2


def test_what_fits_at_the_least_cost_ends_a_search():
    graph = gradient_chain(6)
    peak = replay(graph, np.arange(12)).peak_bytes
    chains = AnnealingChains(graph, 4)
    assert chains.is_least(evaluated(graph, np.arange(12)), peak)
    assert not chains.is_least(evaluated(graph, np.arange(12)), peak - 1)
    assert least_cost(graph) == pytest.approx(graph.costs.sum())
    assert [found.cost for found in annealed(graph, peak)] == [12.0, 12.0]


@pytest.mark.parametrize(
    ("better", "worse"),
    [((5, 9.0), (11, 1.0)), ((5, 1.0), (5, 2.0)), ((9, 1.0), (5, 2.0)), ((4, 1.0), (5, 1.0))],
    ids=["fits", "cheaper", "cheaper in the budget", "smaller"],
)
def test_what_fits_comes_first_then_what_is_cheap_then_what_is_small(better, worse):
    key = lambda peak, cost: Evaluated(np.zeros(0), peak, cost).key(10)
    assert key(*better) < key(*worse)


def test_a_start_with_many_runs_of_a_node_is_taken():
    graph = dataclasses.replace(gradient_chain(3), backward=np.zeros(6, bool))
    often = np.concatenate([np.zeros(12, np.int64), np.arange(6)])
    (found,) = AnnealingChains(graph, 2).anneal([often], [COOLING], 0, seed=0, deadline=Deadline(None))
    assert found.peak_bytes <= evaluated(graph, often).peak_bytes
