"""The jitted replay, and the incremental one inside the annealer, against the exact replay."""

import jax.numpy as jnp
import numpy as np
from free_order_oracle import slow_peak
from hypothesis import given, settings
from hypothesis import strategies as st
from small_graphs import graphs

from jaxremat import Graph, replay
from jaxremat.graph.replay_jax import quanta_of, replay_q, size_class, tables_of
from jaxremat.solvers.annealer import Rules, walk

SLOTS = 64


def slotted(schedule, padded):
    node_at = np.full(SLOTS, padded, np.int32)
    at = (np.arange(len(schedule)) + 1) * SLOTS // (len(schedule) + 1)
    node_at[at] = schedule
    return jnp.asarray(node_at), at


@st.composite
def graphs_with_schedules(draw):
    graph = draw(graphs(most_nodes=6, pinned=True))
    schedule = []
    for node in range(graph.num_nodes):
        schedule += draw(st.lists(st.integers(0, node), max_size=2)) if node else []
        schedule.append(node)
    first = {}
    for step, node in enumerate(schedule):
        first.setdefault(node, step)
    return graph, [node for step, node in enumerate(schedule) if _runs_after_inputs(graph, node, step, first)]


def _runs_after_inputs(graph, node, step, first):
    return all(first[int(graph.producer[value])] < step for value in graph.values_read[node])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(graphs_with_schedules())
def test_jitted_replay_equals_exact_replay_and_definition(case):
    graph, schedule = case
    exact = replay(graph, schedule)
    assert exact.peak_bytes == slow_peak(graph, schedule)
    quanta = quanta_of(graph)
    node_at, at = slotted(schedule, size_class(graph))
    twin = replay_q(tables_of(graph, quanta), node_at)
    assert bool(twin.is_valid)
    assert np.array_equal(np.asarray(twin.live_q)[at] * quanta.unit_bytes, exact.live_bytes - graph.resident_bytes)
    assert int(twin.peak_q) == int(twin.live_q.max())


def test_jitted_replay_refuses_missing_inputs_and_nodes():
    graph = Graph.from_arrays([1, 1, 1], [1, 1, 1], [(0, 1), (1, 2)])
    tables = tables_of(graph, quanta_of(graph))
    verdicts = [
        bool(replay_q(tables, slotted(s, size_class(graph))[0]).is_valid) for s in ([0, 1, 2], [1, 0, 2], [0, 1])
    ]
    assert verdicts == [True, False, False]


def test_quanta_round_up_and_stay_exact_where_sizes_share_a_divisor():
    odd = Graph.from_arrays([2**33 + 1, 2**33 + 3], [1, 1], [(0, 1)])
    quanta = quanta_of(odd)
    sizes_q = np.asarray(tables_of(odd, quanta).size_q)[:2].astype(np.int64)
    assert np.all(sizes_q * quanta.unit_bytes >= odd.value_bytes)
    even = Graph.from_arrays([2**33, 3 * 2**33], [1, 1], [(0, 1)])
    quanta = quanta_of(even)
    sizes_q = np.asarray(tables_of(even, quanta).size_q)[:2].astype(np.int64)
    assert np.array_equal(sizes_q * quanta.unit_bytes, even.value_bytes)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(graphs_with_schedules(), st.integers(0, 2**31), st.integers(1, 20))
def test_walk_keeps_schedules_valid_and_its_peak_exact(case, seed, budget_q):
    graph, schedule = case
    quanta = quanta_of(graph)
    tables = tables_of(graph, quanta)
    f = jnp.float32
    rules = Rules(jnp.int32(budget_q), f(1.0), f(0.5), f(0.05), f(0.4), f(0.2))
    node_at = slotted(schedule, size_class(graph))[0]
    walked = walk(tables, node_at, jnp.uint32(seed), rules, jnp.int32(400), 16)
    last, best = replay_q(tables, walked.node_at), replay_q(tables, walked.best_node_at)
    assert bool(last.is_valid) and bool(best.is_valid)
    assert (int(best.peak_q), int(best.cost_q)) == (int(walked.best_peak_q), int(walked.best_cost_q))
