"""The annealer's walk: what it keeps up to date is what a replay says, and its draws are fair."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from small_graphs import graphs, random_joint_graph

from jaxremat.graph.replay import replay
from jaxremat.graph.replay_jax import quanta_of, size_class, tables_of
from jaxremat.solvers.annealer import Rules, _Blocks, _draws, _fraction, _range_add, walk

SLOTS = 256


def walked(graph, moves, *, budget_bytes=0, seed=3, heat=0.1, add=0.3, remove=0.3):
    """(schedule, best schedule, the walk) of a graph, from its own order."""
    quanta, padded = quanta_of(graph), size_class(graph)
    node_at = np.full(SLOTS, padded, np.int32)
    node_at[(np.arange(graph.num_nodes) + 1) * SLOTS // (graph.num_nodes + 1)] = np.arange(graph.num_nodes)
    rules = Rules(
        budget_q=jnp.int32(quanta.budget_q(budget_bytes)),
        cost_weight=jnp.float32(1.0),
        hot=jnp.float32(heat),
        cold=jnp.float32(heat),
        add_share=jnp.float32(add),
        remove_share=jnp.float32(remove),
    )
    found = walk(tables_of(graph, quanta), jnp.asarray(node_at), jnp.uint32(seed), rules, jnp.int32(moves), 8)
    nodes = [np.asarray(at) for at in (found.node_at, found.best_node_at)]
    return *(each[each < graph.num_nodes] for each in nodes), found, quanta


@settings(max_examples=12, deadline=None, derandomize=True)
@given(graphs(most_nodes=7, pinned=True))
def test_a_walk_keeps_the_peak_and_cost_of_a_replay(graph):
    schedule, best, found, quanta = walked(graph, 400)
    replay(graph, schedule)  # raises for what cannot run
    timeline = replay(graph, best)
    assert (np.bincount(best, minlength=graph.num_nodes)[graph.pinned] == 1).all()
    exact = timeline.peak_bytes - graph.resident_bytes
    assert int(found.best_peak_q) * quanta.unit_bytes == exact  # sizes are few and small: nothing is rounded


def test_equal_seeds_walk_alike_and_others_do_not():
    graph = random_joint_graph(np.random.default_rng(0), forward=8)
    one, again, other = (walked(graph, 2000, seed=seed)[0].tolist() for seed in (1, 1, 2))
    assert one == again != other


def test_a_walk_without_additions_runs_everything_once():
    graph = random_joint_graph(np.random.default_rng(1), forward=8)
    schedule = walked(graph, 3000, add=0.0, remove=0.0)[0]
    assert sorted(schedule.tolist()) == list(range(graph.num_nodes))


def test_the_best_that_fits_is_the_cheapest_seen():
    graph = random_joint_graph(np.random.default_rng(2), forward=8)
    peak = replay(graph, np.arange(graph.num_nodes)).peak_bytes
    best = walked(graph, 3000, budget_bytes=peak)[1]
    assert replay(graph, best).cost == graph.costs.sum(), "the order that it began with fits already"


@pytest.mark.parametrize("sign", [1, -1])
def test_ranges_are_added_as_in_one_row(sign):
    rng = np.random.default_rng(5)
    plain = rng.integers(0, 9, 64).astype(np.int32)
    live = _Blocks(jnp.asarray(plain.reshape(8, 8)), jnp.zeros(8, jnp.int32), jnp.asarray(plain.reshape(8, 8).max(1)))
    add = jax.jit(_range_add, static_argnums=2)
    for _ in range(60):
        first, last = sorted(rng.integers(0, 64, 2).tolist())
        quanta = int(rng.integers(-4, 5))
        live = add(live, jnp.asarray([first, last, quanta], jnp.int32), sign)
        plain[first : last + 1] += sign * quanta
        assert np.asarray(live.entry + live.offset[:, None]).ravel().tolist() == plain.tolist()
        assert int(jnp.max(live.top + live.offset)) == plain.max()


def test_fractions_fill_the_unit_interval_evenly():
    def draw(rng, _):
        rng, (drawn,) = _draws(rng, 1)
        return rng, _fraction(drawn)

    fractions = np.asarray(jax.lax.scan(draw, jnp.uint32(7), length=2000)[1])
    assert fractions.min() >= 0 and fractions.max() < 1
    assert np.histogram(fractions, 5, (0, 1))[0].min() > 350
