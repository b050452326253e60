"""Schedules of any number of phases: cut at the peak, and again at the peak of what comes out.

A schedule is a program again (`graph.unrolled`). What was made before its peak and is read after it must be kept over
the peak, or made again after it: that is one minimum cut, at a price per kept byte. The result is a schedule with
another peak, which is cut in turn. Forward and backward, several gradients one after another, gradients of gradients,
and recomputing what a recomputation needs are then all the same.

A cut is described by a price and a number of segments: values that pass from one segment of the part before the peak to
the next are kept, so that no recomputation reaches further back than a segment. Of all schedules seen, those stay
that no other beats in cost and crowding, or cost and peak; the most promising are cut next.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from jaxremat.graph.graph import Graph
from jaxremat.graph.replay import link
from jaxremat.graph.unrolled import unrolled
from jaxremat.solvers.dead_runs import needed_runs
from jaxremat.solvers.mincut.assemble import assemble_parts
from jaxremat.solvers.mincut.cut import CutNetwork, cuts_at_each
from jaxremat.solvers.mincut.layout import Layout, by_cost, by_peak, lay_out, lower_hull, undominated
from jaxremat.solvers.mincut.structure import Structure, early_surcharge

_SEGMENTS = (1, 2, 4, 8, 16, 32)  # doubled each time; benchmarks/constants.py
_PRICES = np.logspace(-2, 2.5, 6)  # of the mean price of a byte; benchmarks/constants.py
_REFINEMENTS = 6  # halvings of the ratio between two prices, 8: to 3 %; benchmarks/constants.py
_PATIENCE = 4  # rounds in a row that gain next to nothing end a search; benchmarks/constants.py
_GAIN = 0.01  # of the smallest peak; benchmarks/constants.py
_COST_GAIN = 0.002  # of the cost of running everything once; benchmarks/constants.py
_MOST_ROUNDS = 32  # benchmarks/constants.py; patience ends most searches before
_MOST_WORK = 2_000_000  # steps laid out in one search; about two microseconds each; benchmarks/constants.py
_WORK_PER_LAYOUT = 1000  # what laying out takes beside its steps, in the same unit; benchmarks/constants.py


@dataclasses.dataclass(frozen=True, eq=False)
class SourceCut:
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

    def __init__(self, graph: Graph, layout: Layout) -> None:
        self.graph = graph
        self.layout = layout

    def everywhere(self) -> Iterator[Layout]:
        """What comes out at every price and number of segments, no two alike."""
        seen: set[bytes] = set()
        prices = [float(price) for price in self._structure.mean_price * _PRICES]
        must_keep = list(map(self._must_keep, self._boundaries))
        cut_all = lambda asked: self._kept([(must_keep[form], price) for form, price in asked])
        for boundaries, kept in zip(self._boundaries, cuts_at_each(prices, len(must_keep), cut_all)):
            for price, each in zip(prices, kept):
                if each.tobytes() not in seen:
                    seen.add(each.tobytes())
                    yield self._at(each, boundaries, price)

    def refined(self, budget_bytes: int, enough: Layout) -> Layout:
        """Of what comes out at the boundaries of `enough`, the cheapest within a budget that lower prices give."""
        high, boundaries = enough.origin.price, enough.origin.boundaries
        low, must_keep = high * float(_PRICES[0] / _PRICES[1]), self._must_keep(boundaries)
        for _ in range(_REFINEMENTS):
            middle = float(np.sqrt(low * high))
            (kept,) = self._kept([(must_keep, middle)])
            layout = self._at(kept, boundaries, middle)
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
    def _network(self) -> CutNetwork:
        return CutNetwork(self._program, self._structure.rerun_costs, self._structure.needed)

    @functools.cached_property
    def _boundaries(self) -> list[np.ndarray]:
        found = [self._structure.boundaries(segments) for segments in _SEGMENTS]
        return list({ends.tobytes(): ends for ends in found}.values())

    @functools.cached_property
    def _live_anyway(self) -> np.ndarray:
        """[V] bool: outputs, and what the step at the peak reads and makes."""
        program, peak = self._program, self.layout.peak_step
        live = program.is_output.copy()
        live[[*program.values_read[peak], *program.values_of[peak]]] = True
        return live

    @functools.cached_property
    def _priced_bytes(self) -> np.ndarray:
        """[V] what a price of a byte counts; nothing of what is live at the peak whatever is done."""
        return np.where(self._live_anyway, 0.0, early_surcharge(self._program) * self._program.value_bytes)

    def _must_keep(self, boundaries: np.ndarray) -> np.ndarray:
        return self._structure.crossing_values(boundaries) | self._program.is_output

    def _kept(self, asked: Sequence[tuple[np.ndarray, float]]) -> list[np.ndarray]:
        """[V] bool, of each of some pairs (what must be kept, price): what is kept over the peak."""
        questions = [(price * self._priced_bytes, must_keep) for must_keep, price in asked]
        return [kept for kept, _ in self._network.cheapest_of_each(questions)]

    def _at(self, kept: np.ndarray, boundaries: np.ndarray, price: float) -> Layout:
        order, _ = assemble_parts(self._program, kept)
        steps = self.layout.steps[order]
        links = link(self.graph, steps)
        needed = needed_runs(self.graph, steps, links)
        start = int(needed[: _begin(order, self.layout.start)].sum())
        return lay_out(self.graph, steps[needed], start, SourceCut(self, boundaries, price), links.among(needed))


def _begin(order: np.ndarray, first: int) -> int:
    """Where the nodes from `first` on begin to run, with what is run again for the first of them."""
    late = np.flatnonzero(order >= first)
    end = int(late[0]) if late.size else order.size
    furthest = np.maximum.accumulate(order[:end])
    is_new = np.flatnonzero(order[:end] == furthest)
    return int(is_new[-1]) + 1 if is_new.size else 0


class PeakSearch:
    """Schedules of one graph, each from cutting another at its peak; those that matter are remembered.

    Args:
      graph: the graph.
      plain: the schedule to begin with; it is cut at once.
    """

    def __init__(self, graph: Graph, plain: Layout) -> None:
        self.graph = graph
        self._least_cost = float(graph.costs.sum())
        self._layouts = [plain]
        self._done: set[int] = set()
        self._cut_ones: list[Layout] = []  # keeps the identities in `_done` alive
        self._work = 0
        self._cut([plain])

    def fit(self, budget_bytes: int) -> Layout | None:
        """The cheapest schedule found within a budget; None where there is none."""
        idle = 0
        for _ in self._rounds():
            best, least = self._cheapest(budget_bytes), self._lowest.peak_bytes
            chosen = self._promising(budget_bytes, best.cost if best else np.inf)
            if not chosen or idle == _PATIENCE:
                break
            self._cut(chosen)
            idle = 0 if self._gained(budget_bytes, best, least) else idle + 1
        best = self._cheapest(budget_bytes)
        return self._refined(best, budget_bytes) if best else None

    @functools.cached_property
    def smallest(self) -> Layout:
        """The schedule with the smallest peak that is found before several rounds in a row gain next to nothing."""
        self.fit(0)
        return self._lowest

    def front(self) -> list[Layout]:
        """The schedules that no other beats in both peak and cost, smallest peak first."""
        return undominated(self._layouts, lambda layout: layout.peak_bytes)

    def add(self, layouts: Iterable[Layout]) -> None:
        """More schedules to go on from."""
        self._layouts = self._worth_keeping([*self._layouts, *layouts])

    @property
    def _lowest(self) -> Layout:
        return min(self._layouts, key=by_peak)

    def _gained(self, budget_bytes: int, best: Layout | None, least: int) -> bool:
        """Whether the cheapest that fits is cheaper than before, or where none fits, the smallest peak smaller."""
        now = self._cheapest(budget_bytes)
        if best is None or now is None:
            return now is not best or self._lowest.peak_bytes < (1 - _GAIN) * least
        return now.cost < best.cost - _COST_GAIN * self._least_cost

    def _rounds(self) -> Iterator[int]:
        limit = self._work + _MOST_WORK
        return (number for number in range(_MOST_ROUNDS) if self._work <= limit)

    def _cheapest(self, budget_bytes: int) -> Layout | None:
        return min((layout for layout in self._layouts if layout.peak_bytes <= budget_bytes), key=by_cost, default=None)

    def _refined(self, best: Layout, budget_bytes: int) -> Layout:
        return best.origin.cut.refined(budget_bytes, best) if best.origin else best

    def _promising(self, budget_bytes: int, most_cost: float) -> list[Layout]:
        """What to cut next of what is above the budget and cheaper than what fits: the least crowded, and the least
        crowded corner of the lower convex hull of crowding and cost."""
        front = undominated(self._layouts, lambda layout: layout.crowding)
        is_open = lambda layout: (
            layout.peak_bytes > budget_bytes and layout.cost < most_cost and id(layout) not in self._done
        )
        least_crowded = [layout for layout in front if is_open(layout)][:1]
        corners = [layout for layout in lower_hull(front) if is_open(layout)][:2]
        return list({id(layout): layout for layout in (*least_crowded, *corners)}.values())

    def _cut(self, chosen: Sequence[Layout]) -> None:
        for layout in chosen:
            self._done.add(id(layout))
            self._cut_ones.append(layout)
            new = list(PeakCut(self.graph, layout).everywhere())
            self._work += sum(made.steps.size + _WORK_PER_LAYOUT for made in new)
            self.add(new)

    def _worth_keeping(self, layouts: Sequence[Layout]) -> list[Layout]:
        by_crowding = undominated(layouts, lambda layout: layout.crowding)
        by_bytes = undominated(layouts, lambda layout: layout.peak_bytes)
        return list({id(layout): layout for layout in (*by_crowding, *by_bytes)}.values())
