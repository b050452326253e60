"""The search for a schedule of a graph that fits in a budget, at the least extra time.

One cut between forward and backward (`boundary`) is quick and often enough. Where it does not fit, or costs much, the
search goes on from what it made, and cuts at one peak after another (`peaks`). The replay judges every schedule.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from jaxremat.graph.graph import Graph
from jaxremat.graph.scheduled import ScheduledProgram
from jaxremat.solvers.mincut.barriers import barriers_between, with_barriers
from jaxremat.solvers.mincut.boundary import BoundarySearch, SearchPoint
from jaxremat.solvers.mincut.layers import layers_of
from jaxremat.solvers.mincut.layout import Layout, by_cost, by_peak, in_order
from jaxremat.solvers.mincut.leaving import layout_leaving
from jaxremat.solvers.mincut.peaks import PeakSearch
from jaxremat.solvers.mincut.structure import Structure

_LITTLE = 0.01  # of the whole cost: what one cut may add without a search for less; benchmarks/constants.py


@dataclasses.dataclass(frozen=True, eq=False)
class Candidate:
    """A schedule with its replayed numbers.

    Attributes:
      graph: of what.
      layout: the schedule as the search sees it.
      barriers: where they stand; by default, wherever recomputation moves on to another part of the program.
    """

    graph: Graph
    layout: Layout
    barriers: tuple[int, ...] | None = None

    @functools.cached_property
    def program(self) -> ScheduledProgram:
        """The schedule, with barriers."""
        return with_barriers(self.graph, self.layout, self.barriers)

    @property
    def without_barriers(self) -> ScheduledProgram:
        """The schedule alone."""
        return with_barriers(self.graph, self.layout, ())

    @property
    def peak_bytes(self) -> int:
        return self.layout.peak_bytes

    @property
    def cost(self) -> float:
        return self.layout.cost


class Search:
    """Candidates for one graph.

    Args:
      graph: the graph; a joint graph, or one whose nodes are not marked.
      run_seconds: [N] what running each node again is taken to cost, infinite where it must not; by default
        `graph.rerun_costs`.
      keep_seconds: [V] what keeping each value over the first cut is taken to cost beside its bytes; by default
        `graph.keep_costs`.
    """

    def __init__(
        self, graph: Graph, run_seconds: np.ndarray | None = None, keep_seconds: np.ndarray | None = None
    ) -> None:
        if run_seconds is not None:
            graph = dataclasses.replace(graph, rerun_surcharge=np.maximum(run_seconds - graph.costs, 0.0))
        self.graph = graph
        self.boundary = BoundarySearch(graph, keep_seconds)
        self._candidates: dict[int, Candidate] = {}

    @property
    def structure(self) -> Structure:
        """Facts about the graph in two parts."""
        return self.boundary.structure

    @property
    def prices(self) -> list[float]:
        """Prices in seconds per byte, from one that keeps all but the cheapest bytes to one that keeps next to none."""
        return self.boundary.prices

    def candidate(self, point: SearchPoint) -> Candidate:
        """The candidate of one cut that the settings describe."""
        return self._candidate(self.boundary.at(point))

    def leaving(self, saved_bytes: int) -> Candidate:
        """The cheapest candidate whose forward leaves at most so many bytes to the backward; see `leaving`."""
        return Candidate(self.graph, layout_leaving(self.graph, saved_bytes), barriers=())

    @functools.cached_property
    def plain(self) -> Candidate:
        """The program as it stands: everything is computed once, in the given order."""
        return self._candidate(in_order(self.graph))

    def fit(self, budget_bytes: int) -> Candidate:
        """The cheapest candidate whose replayed peak is within the budget, or the one with the smallest peak."""
        if self.plain.peak_bytes <= budget_bytes:
            return self.plain
        if budget_bytes < self.graph.least_bytes:
            return self.smallest
        best = self.boundary.fit(budget_bytes)
        if best is None or best.cost > (1 + _LITTLE) * self.plain.cost:
            self._peaks.add(self.boundary.made)
            best = min(filter(None, (best, self._peaks.fit(budget_bytes))), key=by_cost, default=None)
        return self.smallest if best is None else self._candidate(best)

    def fit_quickly(self, budget_bytes: int) -> Candidate | None:
        """As `fit`, with one cut; None where that does not fit."""
        if self.plain.peak_bytes <= budget_bytes:
            return self.plain
        best = self.boundary.fit(budget_bytes)
        return None if best is None else self._candidate(best)

    @functools.cached_property
    def smallest(self) -> Candidate:
        """The candidate with the smallest replayed peak."""
        return self._candidate(self._lowered.smallest)

    @functools.cached_property
    def smallest_at_once(self) -> Candidate:
        """The candidate with the smallest replayed peak that one cut gives."""
        return self._candidate(min([*self.boundary.smallest_of_each_shape(), self.plain.layout], key=by_peak))

    def at_price(self, price: float) -> list[Candidate]:
        """For every number of segments, the candidate of one cut at a price in seconds per byte."""
        return list(map(self._candidate, self.boundary.at_price(price)))

    def smallest_of_each_shape(self) -> list[Candidate]:
        """For every number of segments, the candidate of one cut with the smallest replayed peak, smallest first."""
        return list(map(self._candidate, self.boundary.smallest_of_each_shape()))

    def checkpointed(self) -> list[Candidate]:
        """For every number of segments, checkpoints around all but the last of them, smallest first."""
        return list(map(self._candidate, self.boundary.checkpointed()))

    def checkpointed_twice(self) -> list[Candidate]:
        """The same with checkpoints around groups of them."""
        return list(map(self._candidate, self.boundary.checkpointed_twice()))

    def in_layers(self, contracts: np.ndarray) -> list[Candidate]:
        """What checkpoints around every layer do, with a barrier where each one begins again; see `layers`.

        Args:
          contracts: [N] bool, the nodes that are contractions.
        """
        graph = self.boundary.graph
        layer = layers_of(graph, contracts)
        layouts = self.boundary.in_layers(layer, contracts) if layer.max() >= 0 else ()
        return [Candidate(self.graph, each, barriers_between(graph, each.steps, each.start, layer)) for each in layouts]

    def small_ones(self, most: int | None = None) -> list[Candidate]:
        """Candidates that no other beats in both peak and cost, smallest first; at most so many, spread evenly."""
        _ = self.smallest
        front = self._lowered.front()
        chosen = front[:: -(-len(front) // most)] if most else front
        return [self._candidate(layout) for layout in chosen]

    @functools.cached_property
    def _peaks(self) -> PeakSearch:
        return PeakSearch(self.graph, self.plain.layout)

    @functools.cached_property
    def _lowered(self) -> PeakSearch:
        """A search of its own for small peaks: it finds the same ones whatever was asked before."""
        search = PeakSearch(self.graph, self.plain.layout)
        search.add(self.boundary.smallest_of_each_shape())
        return search

    def _candidate(self, layout: Layout) -> Candidate:
        """One candidate per layout."""
        return self._candidates.setdefault(id(layout), Candidate(self.graph, layout))
