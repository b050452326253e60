"""Schedules of any number of phases: cut at the peak, and again at the peak of what comes out.

A schedule is a program again (`graph.unrolled`). What was made before its peak and is read after it must be kept over
the peak, or made again after it: that is one minimum cut, at a price per kept byte. The result is a schedule with
another peak, which is cut in turn. Forward and backward, several gradients one after another, gradients of gradients,
and recomputing what a recomputation needs are then all the same.

A cut is described by a price and a number of segments: values that pass from one segment of the part before the peak to
the next are kept, so that no recomputation reaches further back than a segment. Of all schedules seen, those stay
that no other beats in both cost and crowding (`Layout`); the most promising are cut next.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import numpy as np

from jaxremat.graph.graph import Graph
from jaxremat.graph.replay import replay
from jaxremat.graph.unrolled import unrolled
from jaxremat.solvers.idle import needed_runs
from jaxremat.solvers.mincut.assemble import assemble_parts
from jaxremat.solvers.mincut.cut import cheapest_cut
from jaxremat.solvers.mincut.structure import Structure

_SEGMENTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48)
_PRICES = np.logspace(-2, 2.5, 6)  # of the mean price of a byte: from keeping all but the cheapest to next to none
_REFINEMENTS = 6
_LAYER_SLOPE = 0.05
_NORM = 64  # at 1 % below the highest peak, a step counts half: 0.99 ** 64
_PATIENCE = 4
_GAIN = 0.01
_MOST_ROUNDS = 32
_MOST_WORK = 3_000_000  # steps of schedules laid out


@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
    """A schedule with its replayed numbers.

    Attributes:
      steps: [T] node ids.
      start: the step at which the graph's backward begins.
      peak_bytes, cost, peak_step: from the replay.
      crowding: bytes; a norm of the live bytes over the steps that falls, too, when one of several equal peaks is cut.
      origin: what was cut, and where; None for the schedule as given.
    """

    steps: np.ndarray
    start: int
    peak_bytes: int
    cost: float
    peak_step: int
    crowding: float
    origin: Origin | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Origin:
    """The cut that a layout came from."""

    cut: PeakCut
    boundaries: np.ndarray
    price: float


class PeakCut:
    """The cuts of one schedule at its peak.

    Args:
      graph: the graph.
      layout: a schedule of it.
    """

    def __init__(self, graph: Graph, layout: Layout):
        self.graph = graph
        self.layout = layout

    def everywhere(self) -> Iterator[Layout]:
        """What comes out at every price and number of segments, no two alike."""
        seen: set[bytes] = set()
        for boundaries in self._boundaries:
            for price in self._mean_price * _PRICES:
                yield from self._new_at(boundaries, float(price), seen)

    def refined(self, budget_bytes: int, enough: Layout) -> Layout:
        """Of what comes out at the boundaries of `enough`, the cheapest within a budget that lower prices give."""
        assert enough.origin is not None
        high, boundaries = enough.origin.price, enough.origin.boundaries
        low = high * float(_PRICES[0] / _PRICES[1])
        for _ in range(_REFINEMENTS):
            middle = float(np.sqrt(low * high))
            layout = self._at(self._kept(boundaries, middle), boundaries, middle)
            fits = layout.peak_bytes <= budget_bytes
            low, high = (low, middle) if fits else (middle, high)
            enough = min(enough, layout, key=by_cost) if fits else enough
        return enough

    @functools.cached_property
    def _program(self) -> Graph:
        return unrolled(self.graph, self.layout.steps, self.layout.peak_step + 1)

    @functools.cached_property
    def _structure(self) -> Structure:
        return Structure(self._program)

    @functools.cached_property
    def _boundaries(self) -> list[np.ndarray]:
        found = [self._structure.boundaries(segments) for segments in _SEGMENTS]
        return list({ends.tobytes(): ends for ends in found}.values())

    @functools.cached_property
    def _mean_price(self) -> float:
        early = self._structure.forward_nodes
        return float(self._program.costs[early].sum() / max(self._program.node_bytes[early].sum(), 1))

    def _new_at(self, boundaries: np.ndarray, price: float, seen: set[bytes]) -> Iterator[Layout]:
        kept = self._kept(boundaries, price)
        if kept.tobytes() not in seen:
            seen.add(kept.tobytes())
            yield self._at(kept, boundaries, price)

    def _kept(self, boundaries: np.ndarray, price: float) -> np.ndarray:
        """[V] bool: what is kept over the peak. Outputs are, at no price: they stay live whatever is done."""
        program, structure = self._program, self._structure
        position = 1 + _LAYER_SLOPE * (1 - program.producer / max(program.num_nodes, 1))
        keep_price = np.where(program.is_output, 0.0, price * position * program.value_bytes)
        must_keep = structure.crossing_values(boundaries) | program.is_output
        return cheapest_cut(program, keep_price, program.rerun_costs, structure.needed, must_keep)[0]

    def _at(self, kept: np.ndarray, boundaries: np.ndarray, price: float) -> Layout:
        order, begins = assemble_parts(self._program, kept)
        steps = self.layout.steps[order]
        needed = needed_runs(self.graph, steps)
        before = order[:begins] < self.layout.start
        start = int(needed[:begins][before].sum())
        return lay_out(self.graph, steps[needed], start, Origin(self, boundaries, price))


def lay_out(graph: Graph, steps: np.ndarray, start: int, origin: Origin | None = None) -> Layout:
    """Replays a schedule."""
    timeline = replay(graph, steps)
    peak = timeline.peak_bytes
    crowding = peak * float(((timeline.live_bytes / max(peak, 1)) ** _NORM).sum()) ** (1 / _NORM)
    return Layout(steps, start, peak, timeline.cost, timeline.peak_step, crowding, origin)


def by_cost(layout: Layout) -> tuple[float, int]:
    return layout.cost, layout.peak_bytes


def by_peak(layout: Layout) -> tuple[int, float]:
    return layout.peak_bytes, layout.cost


class PeakSearch:
    """Schedules of one graph, each from cutting another at its peak; those that matter are remembered.

    Args:
      graph: the graph.
    """

    def __init__(self, graph: Graph):
        self.graph = graph
        backward = graph.backward
        start = int(backward.argmax()) if backward.any() else graph.num_nodes
        self.plain = lay_out(graph, np.arange(graph.num_nodes), start)
        self._layouts = [self.plain]
        self._done: set[int] = set()
        self._work = 0

    def fit(self, budget_bytes: int) -> Layout:
        """The cheapest schedule found within a budget, or the one with the smallest peak."""
        best = self._cheapest(budget_bytes)
        for _ in self._rounds():
            chosen = self._promising(budget_bytes, best.cost if best else np.inf)
            if not chosen:
                break
            self._cut(chosen)
            best = self._cheapest(budget_bytes)
        return self._refined(best, budget_bytes) if best else min(self._layouts, key=by_peak)

    @functools.cached_property
    def smallest(self) -> Layout:
        """The schedule with the smallest peak that is found before several rounds in a row gain next to nothing."""
        least, idle = self.plain.peak_bytes, 0
        for _ in self._rounds():
            chosen = self._promising(0, np.inf)
            if not chosen or idle == _PATIENCE:
                break
            self._cut(chosen)
            reached = min(self._layouts, key=by_peak).peak_bytes
            idle = 0 if reached < (1 - _GAIN) * least else idle + 1
            least = min(least, reached)
        return min(self._layouts, key=by_peak)

    def front(self) -> list[Layout]:
        """The schedules that no other beats in both peak and cost, smallest peak first."""
        return _undominated(self._layouts, lambda layout: layout.peak_bytes)

    def _rounds(self) -> Iterator[int]:
        limit = self._work + _MOST_WORK
        for number in range(_MOST_ROUNDS):
            if self._work > limit:
                return
            yield number

    def _cheapest(self, budget_bytes: int) -> Layout | None:
        return min((layout for layout in self._layouts if layout.peak_bytes <= budget_bytes), key=by_cost, default=None)

    def _refined(self, best: Layout, budget_bytes: int) -> Layout:
        return best.origin.cut.refined(budget_bytes, best) if best.origin else best

    def _promising(self, budget_bytes: int, most_cost: float) -> list[Layout]:
        """What to cut next of what is above the budget and cheaper than what fits: the least crowded, and the least
        crowded corner of the lower convex hull of crowding and cost."""
        front = _undominated(self._layouts, lambda layout: layout.crowding)
        open_ones = [
            layout
            for layout in front
            if layout.peak_bytes > budget_bytes and layout.cost < most_cost and id(layout) not in self._done
        ]
        corners = [layout for layout in _lower_hull(front) if layout in open_ones]
        return list({id(layout): layout for layout in (*open_ones[:1], *corners[:1])}.values())

    def _cut(self, chosen: Sequence[Layout]) -> None:
        for layout in chosen:
            self._done.add(id(layout))
            new = list(PeakCut(self.graph, layout).everywhere())
            self._work += sum(made.steps.size for made in new)
            self._layouts += new
        front = _undominated(self._layouts, lambda layout: layout.crowding)
        self._layouts = list({id(layout): layout for layout in (*front, *self.front())}.values())


def _undominated(layouts: Sequence[Layout], size) -> list[Layout]:
    """Those than which none is smaller and no dearer, smallest first."""
    front: list[Layout] = []
    for layout in sorted(layouts, key=lambda layout: (size(layout), layout.cost)):
        if not front or layout.cost < front[-1].cost * (1 - 1e-12):
            front.append(layout)
    return front


def _lower_hull(front: Sequence[Layout]) -> list[Layout]:
    """The corners of the lower convex hull of crowding and cost."""
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
