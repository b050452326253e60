"""The search: every candidate can run and holds what it says, effects run once, budgets are kept."""

import dataclasses

import numpy as np
import pytest
from small_graphs import gradient_chain, random_joint_graph, runs

from jaxremat.graph.replay import replay
from jaxremat.solvers import solve
from jaxremat.solvers.mincut.search import Dials, Search


def made_by(search):
    """Every candidate that a search has made."""
    return [search.plain, *search._made.values()]


def assert_honest(search):
    """What each candidate says is what the replay of its schedule says; its backward runs once and in order."""
    graph = search.graph
    late = np.flatnonzero(graph.backward).tolist()
    for candidate in made_by(search):
        program = candidate.program
        timeline = replay(graph, program.steps)
        assert (candidate.peak_bytes, candidate.cost) == (timeline.peak_bytes, timeline.cost)
        assert program.steps[graph.backward[program.steps]].tolist() == late
        assert not graph.backward[program.steps[: program.backward_start]].any()
        assert all(program.backward_start <= barrier < program.steps.size for barrier in program.barriers)
        again = program.steps[list(program.barriers)]
        assert not graph.backward[again].any(), "a fence opens where something is run again"
        assert runs(program.steps, graph).min() == 1


def deep_candidates(search):
    """Candidates of every shape, two levels included, and the smallest of all."""
    shapes = search.smallest_of_each_shape()
    assert any(candidate.dials.groups > 1 for candidate in shapes)
    return [*shapes, search.smallest]


@pytest.mark.parametrize("pinned", [(24,), (0, 17, 30, 47)])
def test_effects_run_once_at_every_dial(pinned):
    search = Search(gradient_chain(48, pinned=pinned))
    found = deep_candidates(search)
    assert_honest(search)
    assert min(candidate.peak_bytes for candidate in found) < search.plain.peak_bytes / 2
    for candidate in made_by(search):
        assert (runs(candidate.program.steps, search.graph)[list(pinned)] == 1).all(), candidate.dials


def test_what_must_not_run_again_does_not_at_any_dial():
    """A loop whose recomputation was decided elsewhere has infinite seconds, without being an effect."""
    graph = gradient_chain(40)
    run_seconds = np.where(np.isin(np.arange(80), (9, 20, 21)), np.inf, graph.costs)
    search = Search(graph, run_seconds)
    deep_candidates(search)
    assert_honest(search)
    for candidate in made_by(search):
        assert (runs(candidate.program.steps, graph)[[9, 20, 21]] == 1).all(), candidate.dials
    assert max(runs(c.program.steps, graph)[10:20].max() for c in made_by(search)) > 2, "two levels were at work"


@pytest.mark.parametrize("seed", range(2))
def test_any_joint_graph_keeps_effects_and_numbers(seed):
    graph = random_joint_graph(np.random.default_rng(seed), forward=28, pinned=3)
    search = Search(graph)
    smallest = search.smallest
    for fraction in (0.9, 0.7, 0.5):
        search.fit(int(fraction * search.plain.peak_bytes))
    assert_honest(search)
    assert all((runs(c.program.steps, graph)[graph.pinned] == 1).all() for c in made_by(search))
    assert smallest.peak_bytes <= min(c.peak_bytes for c in search.smallest_of_each_shape())


def budgets_for(search, number=16):
    low, high = search.smallest.peak_bytes, search.plain.peak_bytes
    return np.linspace(low, high, number).astype(int).tolist()


@pytest.mark.parametrize("length", [12, 40])
def test_a_smaller_budget_does_not_cost_less_on_a_chain(length):
    """Exactly so while one level of saving is enough; where a second one takes over, up to a few percent."""
    search = Search(gradient_chain(length, value_bytes=16))
    budgets = budgets_for(search)
    found = [search.fit(budget) for budget in budgets]
    assert all(c.peak_bytes <= budget for c, budget in zip(found, budgets))
    one_level = [c.cost for c in found if c.dials is None or c.dials.groups == 1]
    assert one_level == sorted(one_level, reverse=True) and len(one_level) > len(found) / 2
    costs = np.asarray([c.cost for c in found])
    assert (costs <= np.minimum.accumulate(costs) + 0.05 * search.plain.cost).all()
    assert costs[-1] == search.plain.cost < costs[0]


@pytest.mark.parametrize("seed", range(3))
def test_every_budget_down_to_the_smallest_is_kept(seed):
    search = Search(random_joint_graph(np.random.default_rng(10 + seed), forward=24))
    for budget in budgets_for(search, 8):
        candidate = search.fit(budget)
        assert candidate.peak_bytes <= budget
        within = [c for c in made_by(search) if c.peak_bytes <= budget and c.dials and c.dials.groups == 1]
        assert candidate.cost <= 1.1 * min((c.cost for c in within), default=np.inf)
    too_small = search.fit(search.smallest.peak_bytes - 1)
    assert too_small is search.smallest


def test_a_budget_that_the_plain_program_keeps_changes_nothing():
    search = Search(gradient_chain(10))
    assert search.fit(search.plain.peak_bytes) is search.plain
    assert (
        search.plain.program.is_in_order
        and search.plain.program.backward_start == 10
        and not search.plain.program.barriers
    )


def test_chains_reach_the_square_root_and_two_levels_go_below():
    """64 layers: one level holds 8 values between segments and 8 inside one, two levels about 3 * 64 ** (1/3)."""
    graph = gradient_chain(64, value_bytes=1)
    search = Search(graph)
    shapes = search.smallest_of_each_shape()
    one = min(c.peak_bytes for c in shapes if c.dials.groups == 1)
    two = min(c.peak_bytes for c in shapes if c.dials.groups > 1)
    assert search.plain.peak_bytes == 65 and one <= 20 and two <= 14
    assert replay(graph, search.smallest.program.steps).peak_bytes == search.smallest.peak_bytes <= two


def test_higher_prices_keep_fewer_bytes():
    search = Search(gradient_chain(30, widths=5 + np.arange(30) * 7 % 11))
    prices = [0.0, *np.logspace(-3, 1, 9)]
    candidates = [search.candidate(Dials(price, 4)) for price in prices]
    costs = [c.cost for c in candidates]
    assert costs == sorted(costs) and costs[0] == search.plain.cost < costs[-1]
    assert candidates[-1].peak_bytes < candidates[0].peak_bytes


def test_what_is_read_before_the_peak_is_kept_for_nothing():
    """A dial names the peak: what the backward has read until then costs nothing to keep, so it is kept."""
    graph = gradient_chain(30)
    search = Search(graph)
    everywhere = search.candidate(Dials(1e3, 1, 1, 0))
    released = search.candidate(Dials(1e3, 1, 1, peak_node=40))
    again = lambda c: set(np.flatnonzero(runs(c.program.steps, graph) > 1).tolist())
    read_late = {v for v in range(29) if 58 - v > 40}
    assert again(released) <= read_late and again(everywhere) >= set(range(29))
    assert released.cost < everywhere.cost


def test_candidates_are_remembered_and_deterministic():
    first, second = Search(gradient_chain(20)), Search(gradient_chain(20))
    dials = Dials(0.1, 6, 2)
    assert first.candidate(dials) is first.candidate(dataclasses.replace(dials))
    assert first.candidate(dials).program.steps.tolist() == second.candidate(dials).program.steps.tolist()
    assert first.fit(100).program.steps.tolist() == second.fit(100).program.steps.tolist()


def test_programs_of_one_layer_are_searched_too():
    search = Search(gradient_chain(1))
    assert search.fit(1) is search.smallest and search.smallest.peak_bytes == 16


def test_what_must_not_run_again_is_a_fact_of_the_graph():
    surcharge = np.where(np.isin(np.arange(80), (9, 20, 21)), np.inf, 0.0)
    graph = dataclasses.replace(gradient_chain(40), rerun_surcharge=surcharge)
    plain = replay(graph, np.arange(80)).peak_bytes
    solution = solve(graph, plain // 2, "mincut")
    assert (runs(solution.schedule, graph)[[9, 20, 21]] == 1).all() and solution.peak_bytes <= plain // 2


def test_graphs_without_marks_are_cut_at_their_peak():
    marked = gradient_chain(40)
    graph = dataclasses.replace(marked, backward=np.zeros(80, bool))
    half = replay(graph, np.arange(80)).peak_bytes // 2
    assert solve(graph, half, "mincut").cost <= 1.02 * solve(marked, half, "mincut").cost
