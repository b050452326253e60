"""Phase two of the rounding: the fewest runs with which what is kept is there."""

import itertools

import numpy as np
import pytest
from graph_oracles import gradient_chain
from hypothesis import given, settings
from small_graphs import graphs

from jaxremat.solvers import CheckmateLP
from jaxremat.solvers.checkmate_lp import implied_runs
from jaxremat.solvers.checkmate_model import build_model


def test_rounding_is_deterministic_for_a_seed():
    graph = gradient_chain(12)
    first, second = (CheckmateLP().propose(graph, 9, seed=4).schedule for _ in range(2))
    assert np.array_equal(first, second)


def is_there(model, kept, runs):
    """Whether every input of a run, and everything that is kept, was carried into the stage or made there."""
    graph = model.graph
    made = lambda stage, value: runs[stage, graph.producer[value]] or kept[stage, value]
    stages, values = range(graph.num_nodes), range(graph.num_values)
    inputs = all(made(t, v) for t in stages for k in np.flatnonzero(runs[t]) for v in graph.values_read[k])
    return inputs and all(made(t, v) for t in stages for v in values if kept[t + 1, v])


@settings(max_examples=25, deadline=None, derandomize=True)
@given(graphs(most_nodes=3))
def test_the_implied_runs_are_the_fewest(graph):
    """Of all choices of runs, by trying each; kept are the values that the stage before made or kept."""
    model, rng = build_model(graph, 1000), np.random.default_rng(graph.num_values)
    n = model.graph.num_nodes
    kept = rng.random((n + 1, model.graph.num_values)) < 0.5
    kept[0], kept[n] = False, False
    for stage in range(n):
        kept[stage] &= model.graph.producer < stage
    runs = implied_runs(model, kept)
    assert is_there(model, kept, runs)
    below = [(t, k) for t in range(n) for k in range(t)]
    for chosen in itertools.product([False, True], repeat=len(below)):
        other = np.eye(n, dtype=bool)
        for place, again in zip(below, chosen):
            other[place] = again
        if is_there(model, kept, other):
            assert (runs <= other).all()


@pytest.mark.parametrize("margin", [0.0, 0.5])
def test_a_relaxation_without_margin_bounds_the_cost(margin):
    proposal = CheckmateLP(margins=(margin,)).propose(gradient_chain(6), 5)
    assert (proposal.lower_bound is not None) == (margin == 0.0)
