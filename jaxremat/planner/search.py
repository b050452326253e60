"""The search for a schedule of a joint graph that fits in a budget, at the least extra time.

Two dials describe a candidate: into how many segments the forward is cut (values that cross a cut are kept, so that
no recomputation reaches further back than a segment), and the price of a kept byte in seconds, for which the minimum
cut is exact. For each number of segments, raising the price lowers the bytes kept; the peak falls until the
recomputed values themselves fill the memory. The replay judges every candidate.

Prices fall slightly along the forward, so that equal layers change their mind one after another, the earliest first:
what early layers keep is live longest.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from jaxremat.graph import Graph
from jaxremat.planner.assemble import assemble
from jaxremat.planner.mincut import cheapest_cut
from jaxremat.planner.structure import Structure
from jaxremat.schedule import replay

_SEGMENTS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48)
_LAYER_SLOPE = 0.05
_REFINEMENTS = 7


@dataclasses.dataclass(frozen=True, eq=False)
class Candidate:
    """A schedule with its replayed numbers.

    Attributes:
      schedule: [T] node ids.
      kept: [V] bool, forward values kept for the backward.
      peak_bytes, cost: from the replay.
    """

    schedule: np.ndarray
    kept: np.ndarray
    peak_bytes: int
    cost: float


class Search:
    """Candidates for one joint graph; every cut that was made is remembered.

    Args:
      graph: a joint graph.
    """

    def __init__(self, graph: Graph):
        self.graph = graph
        self.structure = Structure(graph)
        self._made: dict[tuple[int, float], Candidate] = {}

    @functools.cached_property
    def plain(self) -> Candidate:
        """The program as it stands: everything is computed once, in the given order."""
        return self._judge(np.arange(self.graph.num_nodes, dtype=np.int32), self.structure.needed)

    def fit(self, budget_bytes: int) -> Candidate:
        """The cheapest candidate whose replayed peak is within the budget, or the one with the smallest peak."""
        if self.plain.peak_bytes <= budget_bytes:
            return self.plain
        found = [candidate for segments in _SEGMENTS if (candidate := self._fit_segments(segments, budget_bytes))]
        if found:
            return min(found, key=lambda candidate: (candidate.cost, candidate.peak_bytes))
        return self.smallest

    @functools.cached_property
    def smallest(self) -> Candidate:
        """The candidate with the smallest replayed peak."""
        every = [self._candidate(segments, price) for segments in _SEGMENTS for price in self._prices]
        return min([*every, self.plain], key=lambda candidate: (candidate.peak_bytes, candidate.cost))

    @functools.cached_property
    def _prices(self) -> np.ndarray:
        """Prices in seconds per byte, from one that keeps all but the cheapest bytes to one that keeps next to none."""
        forward = self.structure.forward_nodes
        mean = self.graph.costs[forward].sum() / max(self.graph.node_bytes[forward].sum(), 1)
        return mean * np.logspace(-2, 2, 17)

    @functools.cached_property
    def _position_factor(self) -> np.ndarray:
        """[V] how the price falls along the forward."""
        return 1 + _LAYER_SLOPE * (1 - self.graph.producer / max(self.graph.num_nodes, 1))

    def _fit_segments(self, segments: int, budget_bytes: int) -> Candidate | None:
        previous = None
        for price in self._prices:
            candidate = self._candidate(segments, price)
            if candidate.peak_bytes <= budget_bytes:
                return self._refine(segments, previous, price, budget_bytes)
            previous = price
        return None

    def _refine(self, segments: int, too_low: float | None, enough: float, budget_bytes: int) -> Candidate:
        for _ in range(_REFINEMENTS if too_low else 0):
            middle = float(np.sqrt(too_low * enough))
            if self._candidate(segments, middle).peak_bytes <= budget_bytes:
                enough = middle
            else:
                too_low = middle
        return self._candidate(segments, enough)

    def _candidate(self, segments: int, price: float) -> Candidate:
        key = segments, float(price)
        if key not in self._made:
            self._made[key] = self._make(segments, price)
        return self._made[key]

    def _make(self, segments: int, price: float) -> Candidate:
        graph, structure = self.graph, self.structure
        must_keep = structure.crossing_values(structure.boundaries(segments))
        keep_price = price * self._position_factor * graph.value_bytes
        run_price = np.where(graph.pinned, np.inf, graph.costs)
        kept, _ = cheapest_cut(graph, keep_price, run_price, structure.needed, must_keep)
        return self._judge(assemble(graph, kept), kept)

    def _judge(self, schedule: np.ndarray, kept: np.ndarray) -> Candidate:
        timeline = replay(self.graph, schedule)
        return Candidate(schedule, kept, timeline.peak_bytes, timeline.cost)


