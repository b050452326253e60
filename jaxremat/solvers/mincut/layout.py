"""Schedules as the searches see them: steps with their replayed numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxremat.graph.graph import Graph
from jaxremat.graph.replay import Links, replay, replay_linked
from jaxremat.graph.scheduled import saved_before

_NORM = 64  # a step at 1 % below the highest peak counts half: 0.99 ** 64; benchmarks/constants.py


@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
    """A schedule with its replayed numbers.

    Attributes:
      steps: [T] node ids.
      start: the step at which the graph's backward begins; the number of steps where it has none.
      peak_bytes, cost, peak_step: from the replay, what keeping costs included.
      crowding: bytes; a norm of the live bytes over the steps that falls, too, when one of several equal peaks is cut.
      origin: what it was made from, for the search that made it.
    """

    steps: np.ndarray
    start: int
    peak_bytes: int
    cost: float
    peak_step: int
    crowding: float
    origin: Any = None


def lay_out(graph: Graph, steps: np.ndarray, start: int, origin: Any = None, links: Links | None = None) -> Layout:
    """Replays a schedule; `links`: its own, where they are known."""
    timeline = replay_linked(graph, steps, links) if links else replay(graph, steps)
    peak = timeline.peak_bytes
    crowding = peak * float(((timeline.live_bytes / max(peak, 1)) ** _NORM).sum()) ** (1 / _NORM)
    cost = timeline.cost + _keep_cost(graph, steps[start:])
    return Layout(steps, start, peak, cost, timeline.peak_step, crowding, origin)


def _keep_cost(graph: Graph, tail: np.ndarray) -> float:
    """What it costs to keep what the backward reads of the forward."""
    return float(graph.keep_costs[saved_before(graph, tail)].sum()) if graph.keep_costs.any() else 0.0


def in_order(graph: Graph) -> Layout:
    """The graph as it stands: everything runs once, in the given order."""
    return lay_out(graph, np.arange(graph.num_nodes), graph.backward_start)


def by_cost(layout: Layout) -> tuple[float, int]:
    return layout.cost, layout.peak_bytes


def by_peak(layout: Layout) -> tuple[int, float]:
    return layout.peak_bytes, layout.cost


def undominated(layouts: Sequence[Layout], size: Callable[[Layout], float]) -> list[Layout]:
    """Those than which none is smaller and no dearer, smallest first."""
    front: list[Layout] = []
    for layout in sorted(layouts, key=lambda layout: (size(layout), layout.cost)):
        if not front or layout.cost < front[-1].cost * (1 - 1e-12):
            front.append(layout)
    return front


def lower_hull(front: Sequence[Layout]) -> list[Layout]:
    """The corners of the lower convex hull of crowding and cost, of layouts that are sorted by crowding."""
    hull: list[Layout] = []
    for layout in front:
        while len(hull) >= 2 and _is_above(hull[-2], hull[-1], layout):
            hull.pop()
        hull.append(layout)
    return hull


def _is_above(first: Layout, middle: Layout, last: Layout) -> bool:
    """Whether the middle one lies on or above the line through the others."""
    run, rise = middle.crowding - first.crowding, middle.cost - first.cost
    return run * (last.cost - first.cost) <= rise * (last.crowding - first.crowding)
