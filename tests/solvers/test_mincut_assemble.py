"""Any choice of kept values becomes a schedule that can run: the backward once and in order, effects once."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_graphs import gradient_chain, graphs, random_joint_graph, runs

from jaxremat.graph.replay import replay
from jaxremat.planner.blocks import assemble_in_groups
from jaxremat.solvers.mincut.assemble import assemble, assemble_parts, forward_part
from jaxremat.solvers.mincut.cut import cheapest_cut
from jaxremat.solvers.mincut.structure import Structure


def assert_runs(graph, schedule, start=None):
    """The replay accepts it; backward nodes run once, in order, and not before the forward is over."""
    # A forward node that nothing needs is dead code, which a joint program does not have.
    dead = sorted(set(range(graph.num_nodes)) - set(schedule.tolist()))
    assert not graph.backward[dead].any()
    replay(graph, [*dead_first(graph, dead), *schedule.tolist()])
    late = schedule[graph.backward[schedule]]
    assert late.tolist() == np.flatnonzero(graph.backward).tolist()
    if start is not None:
        assert not graph.backward[schedule[:start]].any()
        assert len(set(schedule[:start].tolist())) == start and (np.diff(schedule[:start]) > 0).all()


def dead_first(graph, dead):
    """Dead nodes with all that they need, so that the replay sees every node once."""
    needed = set(dead)
    for node in range(graph.num_nodes - 1, -1, -1):
        if node in needed:
            needed |= {int(graph.producer[v]) for v in graph.values_read[node]}
    return sorted(needed)


@st.composite
def choices(draw):
    """A joint graph, what is kept of its forward, non-decreasing groups, and what is left across them."""
    graph = draw(graphs(most_nodes=9, backward=True))
    flags = lambda: np.asarray(
        draw(st.lists(st.booleans(), min_size=graph.num_values, max_size=graph.num_values)), bool
    )
    forward = ~graph.backward[graph.producer]
    steps = draw(st.lists(st.integers(0, 1), min_size=graph.num_nodes, max_size=graph.num_nodes))
    return graph, flags() & forward, np.cumsum(steps), flags() & forward


@settings(max_examples=150, deadline=None, derandomize=True)
@given(choices())
def test_one_level_runs_for_any_kept_values(choice):
    graph, kept, _, _ = choice
    schedule, start = assemble_parts(graph, kept)
    assert_runs(graph, schedule, start)
    again = set(schedule[start:].tolist()) - set(np.flatnonzero(graph.backward).tolist())
    for node in again & set(schedule[:start].tolist()):
        assert not all(kept[v] for v in graph.values_of[node]), f"node {node} runs again though all it makes is kept"
    assert assemble(graph, kept).tolist() == schedule.tolist()


@settings(max_examples=150, deadline=None, derandomize=True)
@given(choices())
def test_two_levels_run_for_any_kept_values(choice):
    graph, kept, group, across = choice
    for left in (None, across):
        schedule, start = assemble_parts(graph, kept, group, left)
        assert_runs(graph, schedule, start)
        assert schedule[:start].tolist() == forward_part(graph, _left_by_the_forward(graph, kept, group, left))


def _left_by_the_forward(graph, kept, group, across):
    last = group[graph.producer] == group.max()
    return (kept & last) | (kept if across is None else across)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(choices())
def test_rows_of_checkpoints_run_for_any_kept_values(choice):
    graph, kept, group, _ = choice
    assert_runs(graph, assemble_in_groups(graph, kept, group))
    unknown = np.where(np.arange(graph.num_nodes) % 3 == 0, -1, group)
    assert_runs(graph, assemble_in_groups(graph, kept, unknown))


def test_keeping_all_runs_nothing_again():
    graph = random_joint_graph(np.random.default_rng(0))
    schedule, start = assemble_parts(graph, Structure(graph).needed)
    assert schedule.tolist() == list(range(graph.num_nodes)) and start == 20


def test_recomputation_happens_right_before_its_reader():
    graph = gradient_chain(5)
    kept = np.isin(np.arange(10), (0, 2, 4))
    assert assemble(graph, kept).tolist() == [0, 1, 2, 3, 4, 3, 5, 6, 1, 7, 8, 9]


def test_two_levels_run_a_group_again_before_its_backward():
    """Groups (0, 1, 2) and (3, 4, 5): what crosses is node 2; the first group runs again and leaves node 1."""
    graph = gradient_chain(6)
    kept = np.isin(np.arange(12), (1, 2, 4, 5))
    group = np.repeat([0, 1, 1, 1], 3)
    schedule, start = assemble_parts(graph, kept, group, np.arange(12) == 2)
    assert start == 6 and schedule[6:].tolist() == [6, 3, 7, 8, 0, 1, 9, 0, 10, 11]


@pytest.mark.parametrize("seed", range(6))
def test_the_cut_runs_again_what_it_said_and_effects_once(seed):
    graph = random_joint_graph(np.random.default_rng(seed), pinned=3)
    structure, nothing = Structure(graph), np.zeros(graph.num_values, bool)
    run_price = np.where(graph.pinned, np.inf, graph.costs)
    for price in (0.01, 0.1, 1.0, 10.0):
        kept, again = cheapest_cut(graph, price * graph.value_bytes, run_price, structure.needed, nothing)
        schedule, _ = assemble_parts(graph, kept)
        assert (runs(schedule, graph)[graph.pinned] == 1).all()
        first = np.isin(np.arange(graph.num_nodes), forward_part(graph, kept))
        assert np.flatnonzero(runs(schedule, graph) > 1).tolist() == np.flatnonzero(again & first).tolist()


@pytest.mark.parametrize("seed", range(4))
def test_the_last_group_is_never_run_again_as_a_group(seed):
    rng = np.random.default_rng(seed)
    graph = random_joint_graph(rng)
    group = np.repeat([0, 1, 2, 2], 10)
    kept = Structure(graph).needed & (rng.random(graph.num_values) < 0.6)
    across = Structure(graph).crossing_values(np.asarray([9])) & kept
    schedule, start = assemble_parts(graph, kept, group, across)
    assert_runs(graph, schedule, start)
    in_last = kept & (group[graph.producer] == 2)
    alone = [
        node for node in np.unique(graph.producer[in_last]).tolist() if all(kept[v] for v in graph.values_of[node])
    ]
    assert (runs(schedule, graph)[alone] == 1).all()
