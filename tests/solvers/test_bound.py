"""Lower bounds: below the truth on tiny graphs, in any order; exact where one cut is all there is to it."""

import numpy as np
import pytest
from free_order_oracle import least_cost
from small_graphs import gradient_chain, random_joint_graph

from jaxremat.graph.graph import Graph
from jaxremat.graph.replay import replay
from jaxremat.solvers import solve
from jaxremat.solvers.mincut.bound import lower_bound


def listed_bytes(graph):
    return replay(graph, np.arange(graph.num_nodes)).peak_bytes


def random_graph(seed, nodes=8):
    """Nodes that read any earlier ones; an output, and what nobody reads."""
    rng = np.random.default_rng(seed)
    pairs = [(u, v) for v in range(1, nodes) for u in range(v) if u == v - 1 or rng.random() < 0.3]
    edges = [pair for pair in pairs if rng.random() < 0.85]
    sizes, costs = rng.integers(1, 9, (2, nodes))
    return Graph.from_arrays(sizes, costs, edges, outputs=[nodes - 1])


def test_no_schedule_in_any_order_beats_the_bound():
    told = 0
    for seed in range(40):
        graph = random_graph(seed)
        for share in (0.9, 0.75, 0.6):
            budget = int(share * listed_bytes(graph))
            exact = least_cost(graph, budget)
            bound = lower_bound(graph, budget)
            assert bound >= graph.costs.sum()
            if exact is not None:
                assert bound <= exact + 1e-9, (seed, share)
                told += bound > graph.costs.sum()
    assert told >= 10, "bounds that say more than that every node runs"


def test_a_chain_of_equal_layers_needs_what_one_cut_gives_up():
    """Twelve values of 4 bytes and a budget for eight of them and the gradients: four layers run again."""
    graph = gradient_chain(12, value_bytes=4)
    budget = listed_bytes(graph) - 16
    bound = lower_bound(graph, budget)
    found = solve(graph, budget, "mincut")
    assert graph.costs.sum() + 2.9 * graph.costs[0] <= bound <= found.cost == pytest.approx(found.lower_bound, rel=0.1)


@pytest.mark.parametrize("seed", range(3))
def test_solutions_come_with_their_bound(seed):
    graph = random_joint_graph(np.random.default_rng(seed), forward=24)
    solution = solve(graph, int(0.8 * listed_bytes(graph)), "auto")
    assert graph.costs.sum() <= solution.lower_bound <= solution.cost


def test_what_fits_as_it_is_is_bounded_by_one_run_of_every_node():
    graph = gradient_chain(12)
    assert lower_bound(graph, listed_bytes(graph)) == graph.costs.sum()


def test_effects_are_not_made_again():
    graph = gradient_chain(12, value_bytes=4, pinned=tuple(range(12)))
    assert lower_bound(graph, listed_bytes(graph) // 2) > 2 * graph.costs.sum()
