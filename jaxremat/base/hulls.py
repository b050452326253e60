"""Which of many choices are worth their seconds at some price per byte."""

from __future__ import annotations

from collections.abc import Callable, Iterable


def lower_hull[T](items: Iterable[T], size: Callable[[T], float], seconds: Callable[[T], float]) -> list[T]:
    """The lower convex hull of (size, seconds), from the smallest size to the largest: below it no mixture of others
    would lie, were seconds to change with bytes."""
    hull: list[T] = []
    for item in sorted(items, key=lambda each: (size(each), seconds(each))):
        if hull and seconds(item) >= seconds(hull[-1]):
            continue
        while len(hull) > 1 and _is_above(*((size(each), seconds(each)) for each in (*hull[-2:], item))):
            hull.pop()
        hull.append(item)
    return hull


def _is_above(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> bool:
    """Whether b lies on or above the line from a to c."""
    return (b[1] - a[1]) * (c[0] - a[0]) >= (c[1] - a[1]) * (b[0] - a[0])
