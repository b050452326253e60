"""Schedules with their numbers, and which of many are worth keeping, against the definitions."""

import dataclasses
import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from small_graphs import gradient_chain

from jaxremat.graph.replay import replay
from jaxremat.solvers.mincut.layout import Layout, in_order, lay_out, lower_hull, undominated

POINTS = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=8)


def layouts_of(points):
    nothing = np.zeros(0, np.int64)
    return [Layout(nothing, 0, size, float(cost), 0, float(size)) for size, cost in points]


@settings(max_examples=80, deadline=None, derandomize=True)
@given(POINTS)
def test_those_stay_that_no_other_beats(points):
    kept = {(each.peak_bytes, each.cost) for each in undominated(layouts_of(points), lambda each: each.peak_bytes)}
    beats = lambda a, b: a != b and a[0] <= b[0] and a[1] <= b[1]
    assert kept == {point for point in points if not any(beats(other, point) for other in points)}


@settings(max_examples=80, deadline=None, derandomize=True)
@given(POINTS)
def test_corners_of_the_hull_are_the_cheapest_at_some_price(points):
    front = undominated(layouts_of(points), lambda each: each.crowding)
    corners = lower_hull(front)
    assert {corners[0], corners[-1]} == {front[0], front[-1]}
    for price in (0.01, 0.3, 1.0, 3.0, 100.0):
        objective = lambda each, price=price: each.cost + price * each.crowding
        assert min(map(objective, corners)) == min(map(objective, front))
    for first, middle, last in itertools.combinations(corners, 3):
        share = (middle.crowding - first.crowding) / (last.crowding - first.crowding)
        assert middle.cost < (1 - share) * first.cost + share * last.cost


def test_crowding_falls_with_one_of_several_equal_peaks():
    graph = gradient_chain(4)
    plain = in_order(graph)
    narrow = dataclasses.replace(graph, value_bytes=np.array([8, 8, 8, 8, 8, 1, 1, 8]))
    other = in_order(narrow)
    assert other.crowding < plain.crowding
    assert plain.peak_bytes <= plain.crowding <= plain.peak_bytes * graph.num_nodes ** (1 / 64)


def test_what_keeping_costs_is_counted_of_what_the_backward_reads_of_the_forward():
    graph = gradient_chain(3)
    dear = dataclasses.replace(graph, keep_costs=np.array([1.0, 10, 100, 1000, 1000, 1000]))
    steps = np.arange(6)
    assert lay_out(dear, steps, 3).cost == replay(graph, steps).cost + 111
    again = np.array([0, 1, 2, 0, 1, 3, 4, 5])
    assert lay_out(dear, again, 3).cost == replay(graph, again).cost + 100  # both run again behind the start
