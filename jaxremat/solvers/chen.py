"""Chen's planner: keep the ends of segments, run the segments again.

Chen, Xu, Zhang and Guestrin, "Training Deep Nets with Sublinear Memory Cost", arXiv:1604.06174, 2016.

On a chain of n equal layers with its backward, segments of sqrt(n) layers need 2 sqrt(n) values and one more forward
(`Chen`); halving again and again needs log2(n) values and at most log2(n) more forwards (`ChenRecursive`). On general
graphs these are heuristics with no guarantee. One schedule takes O(N + R) per segment that runs again; the search
tries a fixed number of them.

Deviations. The paper's planner accumulates sizes along the forward and keeps a split point once they exceed B; here a
split keeps all that crosses it, so that any graph can be split anywhere, and slides within a window to where little
crosses. Graphs that are not marked are split into front and back where the plain schedule peaks. The search over
B is joined by two more: how much of the front is planned at all (the rest is kept), and which values are dear enough
for their size to be kept (the paper: keep convolutions, drop the cheap rest). Every candidate is replayed.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxremat.graph.graph import Chain, Graph
from jaxremat.graph.replay import replay
from jaxremat.solvers.base import Proposal, require_graph
from jaxremat.solvers.deadline import Deadline
from jaxremat.solvers.segments import FrontNodes, Splitter, segmented_schedule

_PLANNED_FRACTIONS = (1.0, 0.5, 0.25, 0.75, 0.375, 0.125, 0.625, 0.875)  # halves, then what lies between
_KEPT_FRACTIONS = (0.0, 0.1, 0.25, 0.5, 0.75)  # from nothing to most
_ABOUT_THE_PEAK = 0.9  # of the peak: a front that ends where so much is live may be as good; each is tried
_WINDOWS = (0.0, 0.5)  # none, or half a segment


@dataclasses.dataclass(frozen=True)
class Chen:
    """Segments of about B bytes, with a search over B.

    Attributes:
      segment_counts: how many segments to try; None means a geometric range up to the length of the graph.
      node_steps: bound on the search, in node runs over all the candidates.
    """

    name = "chen"
    segment_counts: tuple[int, ...] | None = None
    node_steps: int = 2_000_000

    def propose(
        self, problem: Graph | Chain, budget_bytes: int, *, seed: int = 0, time_limit: float | None = None
    ) -> Proposal:
        """The cheapest candidate within the budget, or the one with the smallest peak; deterministic."""
        graph = require_graph(problem, self.name)
        return _best_candidate(graph, budget_bytes, self._splitters, self.node_steps, time_limit)

    def _splitters(self, front: FrontNodes, planned_until: int, window: float) -> Iterator[Splitter]:
        for count in self.segment_counts or _geometric(planned_until + 1):
            yield FlatSplitter(front, planned_until, count, window)


@dataclasses.dataclass(frozen=True)
class ChenRecursive:
    """Segments within segments: each run keeps `branching` - 1 cuts, and the last part is split again.

    Attributes:
      branching: parts into which a run is split, several to try; 2 is the paper's halving.
      node_steps: bound on the search, in node runs over all the candidates.
    """

    name = "chen-recursive"
    branching: tuple[int, ...] = (2, 3, 4)
    node_steps: int = 2_000_000

    def propose(
        self, problem: Graph | Chain, budget_bytes: int, *, seed: int = 0, time_limit: float | None = None
    ) -> Proposal:
        """The cheapest candidate within the budget, or the one with the smallest peak; deterministic."""
        graph = require_graph(problem, self.name)
        return _best_candidate(graph, budget_bytes, self._splitters, self.node_steps, time_limit)

    def _splitters(self, front: FrontNodes, planned_until: int, window: float) -> Iterator[Splitter]:
        for count in _geometric(planned_until + 1)[::-1]:
            for branching in self.branching:
                yield NestedSplitter(front, planned_until, count, window, branching)


@dataclasses.dataclass(frozen=True)
class FlatSplitter:
    """Cuts the first run into `count` segments of equal stored bytes up to `planned_until`, later runs not at all."""

    front: FrontNodes
    planned_until: int
    count: int
    window: float

    def __call__(self, base: int, end: int) -> list[int]:
        if base >= 0 or end < self.front.turn:
            return []
        return _even_cuts(self.front, -1, self.planned_until, self.count, self.window) + _last_cut(self, end)


@dataclasses.dataclass(frozen=True)
class NestedSplitter:
    """Cuts every run into `branching` parts, and the last part again, until a part stores a `count`th of the front."""

    front: FrontNodes
    planned_until: int
    count: int
    window: float
    branching: int

    def __call__(self, base: int, end: int) -> list[int]:
        stored = self.front.stored_bytes
        cuts, limit = [], min(end, self.planned_until)
        while stored[limit] - (stored[base] if base >= 0 else 0) > stored[-1] / self.count:
            added = _even_cuts(self.front, base, limit, self.branching, self.window)
            if not added:
                break
            cuts += added
            base = added[-1]
        return cuts + (_last_cut(self, end) if base < self.planned_until else [])


def _last_cut(splitter: FlatSplitter | NestedSplitter, end: int) -> list[int]:
    """What lies behind `planned_until` is kept: a cut there, in the run that reaches beyond it."""
    return [splitter.planned_until] if splitter.planned_until < end else []


def _even_cuts(front: FrontNodes, base: int, end: int, parts: int, window: float) -> list[int]:
    """At most parts - 1 cuts strictly between base and end, at equal distances in stored bytes."""
    start = float(front.stored_bytes[base]) if base >= 0 else 0.0
    step = (float(front.stored_bytes[end]) - start) / parts
    cuts: list[int] = []
    for part in range(1, parts):
        low = (cuts[-1] if cuts else base) + 1
        cut = front.cut_near(start + part * step, low, end - 1, window * step)
        if cut is None:
            break
        cuts.append(cut)
    return cuts


def _geometric(largest: int) -> tuple[int, ...]:
    """2, 3, 4, 6, 8, 11, ... up to a largest number, itself included."""
    grown = [round(2 ** (1 + exponent / 2)) for exponent in range(2 * max(largest, 2).bit_length())]
    return tuple(sorted({count for count in grown if count < largest} | {max(largest, 2)}))


def _best_candidate(
    graph: Graph, budget_bytes: int, splitters: Any, node_steps: int, time_limit: float | None
) -> Proposal:
    """Tries the plain schedule, then candidates until the search is used up; replays all that could be better."""
    deadline = Deadline(time_limit)
    plain = np.arange(graph.num_nodes, dtype=np.int32)
    best, best_peak, best_cost = plain, replay(graph, plain).peak_bytes, float(graph.costs.sum())
    if best_peak <= budget_bytes:
        return Proposal(schedule=plain, lower_bound=best_cost, optimal=True)
    for front, splitter, always_kept in _candidates(graph, splitters):
        schedule = segmented_schedule(front, splitter, always_kept)
        cost = float(graph.costs[schedule].sum())
        if best_peak > budget_bytes or cost < best_cost:
            peak = replay(graph, schedule).peak_bytes
            if (max(peak, budget_bytes), cost) < (max(best_peak, budget_bytes), best_cost):
                best, best_peak, best_cost = schedule, peak, cost
        node_steps -= schedule.size
        if node_steps < 0 or deadline.passed():
            break
    return Proposal(schedule=best)


def _candidates(graph: Graph, splitters: Any) -> Iterator[tuple[FrontNodes, Splitter, frozenset[int]]]:
    """All combinations of turn, planned part, kept values, window and splitter, the plainest of each first."""
    fronts = [FrontNodes(graph, turn) for turn in _turns(graph)]
    settings = itertools.product(
        range(len(fronts)), range(len(_PLANNED_FRACTIONS)), range(len(_KEPT_FRACTIONS)), range(len(_WINDOWS))
    )
    for turn, planned, kept, window in sorted(settings, key=sum):
        front = fronts[turn]
        planned_until = _position_storing(front, _PLANNED_FRACTIONS[planned])
        always_kept = _dearest_values(front, _KEPT_FRACTIONS[kept])
        for splitter in splitters(front, planned_until, _WINDOWS[window]):
            yield front, splitter, always_kept


def _turns(graph: Graph) -> list[int]:
    """Where the front may end: before the backward where it is marked, otherwise about the peak."""
    last = graph.num_nodes - 1
    if 0 < graph.backward_start <= last:
        return [graph.backward_start - 1]
    live = replay(graph, np.arange(graph.num_nodes)).live_bytes
    peak = int(live.argmax())
    high = np.flatnonzero(live >= _ABOUT_THE_PEAK * live.max())
    return list(dict.fromkeys(min(max(turn, 0), last) for turn in (peak, int(high[0]) - 1, int(high[-1]))))


def _position_storing(front: FrontNodes, fraction: float) -> int:
    """The first position of the front up to which at least a fraction of its stored bytes is made."""
    if fraction == 1.0:
        return front.turn
    return int(np.searchsorted(front.stored_bytes, fraction * front.stored_bytes[-1]))


def _dearest_values(front: FrontNodes, fraction: float) -> frozenset[int]:
    """The stored values with the highest cost per byte that fill a fraction of the stored bytes."""
    graph = front.graph
    stored = np.flatnonzero(np.asarray(front.last_back_reader) >= 0)
    sizes = graph.value_bytes[stored].astype(float)
    density = graph.costs[graph.producer[stored]] / np.maximum(sizes, 1e-300)
    order = np.lexsort((stored, -density))
    filled = np.cumsum(sizes[order]) <= fraction * sizes.sum()
    return frozenset(stored[order][filled].tolist())
