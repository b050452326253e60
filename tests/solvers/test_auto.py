"""Which solver takes which problem, and that what was found before is never lost."""

import dataclasses

import numpy as np
from chain_oracles import unit_chain
from small_graphs import gradient_chain

from jaxremat.graph.graph import Chain
from jaxremat.graph.replay import replay
from jaxremat.solvers import Auto, FastSA, MinCut, Rotor

QUICK = Auto(
    first=FastSA(temperatures=(1e-2,), moves=5_000, reheats=1, reheat_moves=2_000),
    second=FastSA(temperatures=(1e-2,), moves=5_000, reheats=1, reheat_moves=2_000),
)


def unmarked(length):
    graph = gradient_chain(length)
    return dataclasses.replace(graph, backward=np.zeros(graph.num_nodes, bool))


def test_chains_are_rotor_s():
    chain = unit_chain(6)
    assert isinstance(QUICK.init(chain), Chain)
    assert QUICK.propose(chain, 9).operations == Rotor().propose(chain, 9).operations


def test_what_is_marked_is_cut_and_not_annealed():
    graph = gradient_chain(12)
    ours, cut = QUICK.propose(QUICK.init(graph), 100), MinCut().propose(MinCut().init(graph), 100)
    assert np.array_equal(ours.schedule, cut.schedule)


def test_annealing_is_no_worse_than_the_cuts_that_it_begins_with():
    for length, budget in ((10, 48), (16, 64)):
        graph = unmarked(length)
        ours, cut = QUICK.propose(QUICK.init(graph), budget), MinCut().propose(MinCut().init(graph), budget)
        ours, cut = (replay(graph, each.schedule) for each in (ours, cut))
        key = lambda timeline, budget=budget: (max(timeline.peak_bytes, budget), timeline.cost)
        assert key(ours) <= key(cut)


def test_graphs_too_large_to_anneal_are_cut():
    graph = unmarked(12)
    small = dataclasses.replace(QUICK, first=dataclasses.replace(QUICK.first, group_above=8))
    assert np.array_equal(
        small.propose(small.init(graph), 64).schedule, MinCut().propose(MinCut().init(graph), 64).schedule
    )
