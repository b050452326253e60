"""The lower convex hull, against all lines through two of its points."""

import itertools
import random

import pytest

from jaxremat.base.hulls import lower_hull

SIZE, SECONDS = (lambda point: point[0]), (lambda point: point[1])


@pytest.mark.parametrize("seed", range(20))
def test_a_price_per_byte_chooses_from_the_hull(seed):
    """At every price something of the hull is the cheapest of all, and nothing of the hull lies above a line."""
    draw = random.Random(seed)
    points = [(draw.randint(1, 12), draw.randint(1, 12)) for _ in range(15)]
    hull = lower_hull(points, SIZE, SECONDS)
    for price in (0.0, 0.05, 0.3, 1.0, 2.5, 20.0):
        cheapest = min(price * size + seconds for size, seconds in points)
        assert min(price * size + seconds for size, seconds in hull) == pytest.approx(cheapest)
    for (a, s), (b, t), (c, u) in itertools.combinations(hull, 3):
        assert a < b < c and s > t > u
        assert t < s + (u - s) * (b - a) / (c - a)


def test_of_nothing_there_is_no_hull():
    assert lower_hull([], SIZE, SECONDS) == []
