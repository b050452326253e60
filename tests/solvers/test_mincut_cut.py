"""The minimum cut against every choice there is, on small joint graphs."""

import dataclasses
import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from small_graphs import gradient_chain, graphs

from jaxremat.solvers.mincut.cut import CutNetwork, cheapest_cut, cuts_at_each
from jaxremat.solvers.mincut.structure import Structure


def available_with(graph, needed, again):
    """[V] what must be available when some nodes run again: what is needed, and what those nodes read."""
    available = needed & ~graph.backward[graph.producer]
    for node in again:
        available[list(graph.values_read[node])] = True
    return available


def price_of(graph, keep_price, run_price, kept, again):
    return keep_price[kept].sum() + sum(run_price[node] for node in again)


def cheapest_by_enumeration(graph, keep_price, run_price, needed, must_keep):
    """The least price over all sets of nodes that run again: a value is kept unless its producer is among them."""
    may_run = np.flatnonzero(~graph.backward & np.isfinite(run_price)).tolist()
    least = np.inf
    for size in range(len(may_run) + 1):
        for again in itertools.combinations(may_run, size):
            available = available_with(graph, needed, again)
            kept = available & (must_keep | ~np.isin(graph.producer, again))
            least = min(least, price_of(graph, keep_price, run_price, kept, again))
    return least


@st.composite
def questions(draw):
    graph = draw(graphs(most_nodes=10, backward=True))
    whole = lambda high, size: draw(st.lists(st.integers(0, high), min_size=size, max_size=size))
    keep_price = np.asarray(whole(9, graph.num_values), float)
    run_price = np.asarray(whole(9, graph.num_nodes), float)
    run_price[np.asarray(whole(5, graph.num_nodes)) == 5] = np.inf
    must_keep = np.asarray(whole(4, graph.num_values)) == 4
    return graph, keep_price, run_price, Structure(graph).needed, must_keep


@settings(max_examples=150, deadline=None, derandomize=True)
@given(questions())
def test_no_choice_is_cheaper(question):
    graph, keep_price, run_price, needed, must_keep = question
    kept, again = cheapest_cut(*question)
    assert not (kept & graph.backward[graph.producer]).any() and not (again & graph.backward).any()
    assert np.isfinite(run_price[again]).all()
    available = available_with(graph, needed, np.flatnonzero(again).tolist())
    assert (kept | again[graph.producer])[available].all(), "something is neither kept nor made again"
    assert kept[available & must_keep].all() and available[kept].all()
    ours = price_of(graph, keep_price, run_price, kept, np.flatnonzero(again))
    assert ours == cheapest_by_enumeration(*question)


def corners(prices, scale=1.0):
    """(bytes kept, seconds run again) at each price of a byte, on a chain with dear and cheap layers."""
    graph = gradient_chain(12, widths=[5, 40, 7, 90, 11, 60, 8, 8, 30, 9, 70, 10])
    run_price = scale * np.where(graph.backward, 0.0, 1 + np.arange(24) % 5)
    needed, no = Structure(graph).needed, np.zeros(24, bool)
    must = no | (np.arange(24) == 0)
    cuts = [cheapest_cut(graph, price * graph.value_bytes, run_price, needed, must) for price in prices]
    return [(int(graph.value_bytes[kept].sum()), float(run_price[again].sum())) for kept, again in cuts]


def test_prices_walk_from_keeping_all_to_keeping_nothing():
    points = corners([0.0, *np.logspace(-3, 2, 12)])
    held, seconds = zip(*points)
    assert list(held) == sorted(held, reverse=True) and list(seconds) == sorted(seconds)
    assert seconds[1] == 0 and held[-1] == 5 and len(set(points)) >= 4


def test_prices_in_any_unit_cut_alike():
    prices = np.logspace(-3, 2, 12)
    for scale in (1e-12, 1e12):
        assert corners(prices * scale, scale) == [(held, s * scale) for held, s in corners(prices)]


def test_values_beyond_31_bits_are_told_apart():
    graph = dataclasses.replace(gradient_chain(4), value_bytes=np.asarray([2**44, 2**44 + 2**24, 2**44, 8, 8, 8, 8, 8]))
    run_price = np.where(np.arange(8) == 0, np.inf, 2**44 + 2**23 + 0.0)
    kept, again = cheapest_cut(
        graph, graph.value_bytes.astype(float), run_price, Structure(graph).needed, np.zeros(8, bool)
    )
    assert np.flatnonzero(again).tolist() == [1] and np.flatnonzero(kept).tolist() == [0, 2, 3]


def test_what_must_not_run_is_kept_and_what_is_free_is_not():
    graph = gradient_chain(6, pinned=(2,))
    prices = np.where(graph.pinned, np.inf, 0.0)
    kept, again = cheapest_cut(graph, np.ones(12), prices, Structure(graph).needed, np.zeros(12, bool))
    assert np.flatnonzero(kept).tolist() == [2]
    assert np.flatnonzero(again).tolist() == [0, 1, 3, 4, 5]


def test_nothing_needed_keeps_nothing():
    graph = gradient_chain(3)
    kept, again = cheapest_cut(graph, np.ones(6), np.ones(6), np.zeros(6, bool), np.ones(6, bool))
    assert not kept.any() and not again.any()


def test_what_must_not_run_is_kept_whatever_it_costs():
    """The price of keeping it is far above all other prices together, and no reason to do without."""
    graph = gradient_chain(6, pinned=(5,))
    keep_price = np.where(graph.pinned, 1e6, 1.0)
    run_price = np.where(graph.pinned, np.inf, 1e-3)
    kept, again = cheapest_cut(graph, keep_price, run_price, Structure(graph).needed, np.zeros(12, bool))
    assert np.flatnonzero(kept).tolist() == [5] and np.flatnonzero(again).tolist() == [0, 1, 2, 3, 4]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(questions())
def test_what_is_the_cheapest_at_two_prices_is_so_between(question):
    graph, keep_price, run_price, needed, must_keep = question
    asked = []

    def cut_at(price):
        asked.append(price)
        return np.concatenate(cheapest_cut(graph, price * keep_price, run_price, needed, must_keep))

    def seconds(cut, price):
        kept, again = np.split(cut, [graph.num_values])
        return price_of(graph, price * keep_price, run_price, kept, np.flatnonzero(again))

    prices = [0.01, 0.1, 0.5, 1.0, 2.0, 10.0, 100.0]
    (found,) = cuts_at_each(prices, 1, lambda each: [cut_at(price) for _, price in each])
    assert len(asked) == len(set(asked)) <= len(prices)
    for price, cut in zip(prices, found, strict=True):
        np.testing.assert_allclose(seconds(cut, price), seconds(cut_at(price), price), rtol=1e-6, atol=1e-9)


def test_equal_cuts_are_asked_for_twice_at_most():
    asked = []

    def cut_all(each):
        asked.append(list(each))
        return [np.full(3, network == 0 or price < 3) for network, price in each]

    alike, apart = cuts_at_each([1.0, 2.0, 3.0, 4.0, 5.0], 2, cut_all)
    assert asked == [[(0, 1.0), (0, 5.0), (1, 1.0), (1, 5.0)], [(1, 3.0)], [(1, 2.0)]] and len(alike) == 5
    assert [cut.all() for cut in apart] == [True, True, False, False, False]
    assert cuts_at_each([1.0], 1, lambda each: [np.zeros(1, bool)])[0][0].tolist() == [False]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(questions(), st.integers(0, 2**31))
def test_cuts_side_by_side_are_those_of_each(question, seed):
    graph, keep_price, run_price, needed, must_keep = question
    forced = np.random.default_rng(seed).random((4, graph.num_values)) < 0.3
    asked = [(price * keep_price, must_keep | more) for price, more in zip((0.0, 0.1, 1.0, 10.0), forced)]
    network = CutNetwork(graph, run_price, needed)
    for side_by_side, each in zip(network.cheapest_of_each(asked), asked, strict=True):
        for got, alone in zip(side_by_side, cheapest_cut(graph, each[0], run_price, needed, each[1]), strict=True):
            np.testing.assert_array_equal(got, alone)
