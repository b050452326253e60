"""Schedules from one cut between forward and backward.

A layout is described by three settings (`SearchPoint`):

- the price of a kept byte in seconds, for which the minimum cut is exact: raising it keeps fewer bytes and recomputes
  more, along the lower convex hull of the two;
- into how many segments the forward is cut: values that cross a cut are kept, so that no recomputation reaches further
  back than a segment and what is recomputed at a time stays small;
- the node of the backward at which memory peaks: what the backward has read until then is live at the peak whether
  it was kept or not, so keeping it is free.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np

from jaxremat.graph.graph import Graph
from jaxremat.graph.replay import replay
from jaxremat.solvers.mincut.assemble import Level, assemble_nested, assemble_parts
from jaxremat.solvers.mincut.cut import CutNetwork, cuts_at_each
from jaxremat.solvers.mincut.layers import entering_layers
from jaxremat.solvers.mincut.layout import Layout, by_cost, by_peak, lay_out
from jaxremat.solvers.mincut.structure import SEGMENTS, Structure, early_surcharge, ends_of_groups

_PRICES = np.logspace(-2, 2.5, 10)  # of the mean price of a byte; benchmarks/constants.py
_REFINEMENTS = 6  # halvings of the ratio between two prices, 3.2: to 2 %; benchmarks/constants.py


@dataclasses.dataclass(frozen=True)
class SearchPoint:
    """What describes a layout; see the module."""

    price: float
    segments: int = 1
    peak_node: int = 0


_Span = tuple[SearchPoint, SearchPoint]


class BoundarySearch:
    """Layouts of a graph from one cut; every one that was made is remembered.

    Args:
      graph: a joint graph; one whose nodes are not marked is cut at its peak.
      keep_seconds: [V] what keeping each value is taken to cost beside its bytes; by default
        `graph.keep_costs`.
      keeps_outputs: whether outputs stay live after the forward, so that keeping them is free; else they may be made
        again.
    """

    def __init__(self, graph: Graph, keep_seconds: np.ndarray | None = None, *, keeps_outputs: bool = True) -> None:
        self.graph = in_two_parts(graph)
        self.structure = Structure(self.graph)
        self._stays = graph.is_output & keeps_outputs
        self._run_costs = self.structure.rerun_costs if keeps_outputs else graph.rerun_costs
        self._keep_seconds = graph.keep_costs if keep_seconds is None else keep_seconds
        self._has_backward = bool(graph.backward.any())
        self._crossing = functools.cache(lambda segments: crossing_segments(self.structure, segments))
        self._kept: dict[SearchPoint, np.ndarray] = {}
        self._made: dict[SearchPoint, Layout] = {}
        self._laid_out: dict[bytes, Layout] = {}

    @property
    def made(self) -> Sequence[Layout]:
        """Every layout so far."""
        return list(self._laid_out.values())

    def fit(self, budget_bytes: int) -> Layout | None:
        """The cheapest layout whose replayed peak is within the budget, None where there is none."""
        points = [SearchPoint(0.0, segments) for segments in self._shapes]
        best = self._cheapest(points, budget_bytes, None)
        if best is None:
            return None
        released = [dataclasses.replace(point, peak_node=self._peak_node(best)) for point in points]
        return self._cheapest(released, budget_bytes, best)

    def at_price(self, price: float) -> list[Layout]:
        """For every number of segments, the layout of a price."""
        return [self.at(SearchPoint(price, segments)) for segments in self._shapes]

    def smallest_of_each_shape(self) -> list[Layout]:
        """For every number of segments, the layout with the smallest replayed peak, smallest first."""
        shapes = [SearchPoint(0.0, segments) for segments in self._shapes]
        least = [min(self.at_prices(shape)[3:], key=by_peak) for shape in self._cut_at_prices(shapes)]
        return sorted(least, key=by_peak)

    def checkpointed(self) -> list[Layout]:
        """For every number of segments, what checkpoints around all but the last of them do: what passes from one to
        the next is kept, and a segment runs again as a whole; smallest replayed peak first."""
        return sorted((self._checkpointed(self.structure.boundaries(k)) for k in self._shapes), key=by_peak)

    def checkpointed_twice(self) -> list[Layout]:
        """The same with checkpoints around groups of such segments, about as many groups as segments in one."""
        each = [self.structure.boundaries(segments) for segments in self._shapes]
        nested = [(ends_of_groups(ends, math.isqrt(ends.size + 1)), ends) for ends in each if ends.size > 2]
        return sorted((self._checkpointed(*ends) for ends in nested), key=by_peak)

    def in_layers(self, layer: np.ndarray, contracts: np.ndarray) -> list[Layout]:
        """What checkpoints around layers do: what enters a layer is kept, or that and what contractions make.

        Args:
          layer: [N] the layer that each node lies in; see `layers_of`.
          contracts: [N] bool, the nodes that are contractions.
        """
        entering = entering_layers(self.graph, layer) | self._made_once
        made = contracts[self.graph.producer] & self.structure.is_forward_value
        return [self._assembled(*assemble_parts(self.graph, kept)) for kept in (entering, entering | made)]

    @functools.cached_property
    def _made_once(self) -> np.ndarray:
        """[V] bool: what is read of forward nodes that must not run again."""
        runs_once = np.isinf(self._run_costs)[self.graph.producer]
        return runs_once & self.structure.is_read & self.structure.is_forward_value

    def _checkpointed(self, *levels: np.ndarray) -> Layout:
        """By the nodes that end segments, of the outermost checkpoints first."""
        across = [self.structure.crossing_values(ends) | self._made_once for ends in levels]
        kept = [*across[1:], self.structure.needed]
        segment = [np.searchsorted(ends, np.arange(self.graph.num_nodes)) for ends in levels]
        return self._assembled(*assemble_nested(self.graph, list(map(Level, kept, segment)), across[0]))

    def at(self, point: SearchPoint) -> Layout:
        """The layout that the settings describe."""
        if point not in self._made:
            self._cut([point])
            kept = self._kept[point]
            if kept.tobytes() not in self._laid_out:
                self._laid_out[kept.tobytes()] = self._assembled(*assemble_parts(self.graph, kept))
            self._made[point] = self._laid_out[kept.tobytes()]
        return self._made[point]

    def at_prices(self, shape: SearchPoint) -> list[Layout]:
        """The layouts that a shape gives at all `prices`."""
        self._cut_at_prices([shape])
        return [self.at(dataclasses.replace(shape, price=price)) for price in self.prices]

    def _assembled(self, steps: np.ndarray, start: int) -> Layout:
        return lay_out(self.graph, steps.astype(np.int64), start if self._has_backward else steps.size)

    @functools.cached_property
    def _shapes(self) -> list[int]:
        """Numbers of segments, no two of which keep the same values over their boundaries."""
        return list({self._crossing(segments).tobytes(): segments for segments in reversed(SEGMENTS)}.values())[::-1]

    @functools.cached_property
    def prices(self) -> list[float]:
        """Prices in seconds per byte, from one that keeps all but the cheapest bytes to one that keeps next to none."""
        return [float(price) for price in self.structure.mean_price * _PRICES]

    def _cheapest(self, shapes: Sequence[SearchPoint], budget_bytes: int, best: Layout | None) -> Layout | None:
        spans = [span for shape in self._cut_at_prices(shapes) if (span := self._span(shape, budget_bytes, best))]
        return min([*filter(None, [best]), *self._refined(spans, budget_bytes)], key=by_cost, default=None)

    def _span(self, shape: SearchPoint, budget_bytes: int, best: Layout | None) -> _Span | None:
        """The last of the prices at which a shape does not fit and the next one, at which it does; None where it does
        not at all, or cannot beat `best`."""
        before = None
        for price in self.prices:
            point = dataclasses.replace(shape, price=price)
            layout = self.at(point)
            if layout.peak_bytes <= budget_bytes:
                return before or point, point
            if best is not None and layout.cost >= best.cost:
                return None
            before = point
        return None

    def _refined(self, spans: Sequence[_Span], budget_bytes: int) -> list[Layout]:
        """What each shape gives at a listed price at which it fits, and at the smallest price, which costs more now and
        then; the latter not where another one surely costs less."""
        at_listed = [self.at(fits) for _, fits in spans]
        enough = min((layout.cost for layout in at_listed), default=np.inf)
        spans = [(low, fits) for low, fits in spans if low != fits and self.at(low).cost <= enough]
        for _ in range(_REFINEMENTS):
            middle = [dataclasses.replace(low, price=float(np.sqrt(low.price * fits.price))) for low, fits in spans]
            self._cut(middle)
            spans = [
                (low, between) if self.at(between).peak_bytes <= budget_bytes else (between, fits)
                for (low, fits), between in zip(spans, middle)
            ]
        return [*at_listed, *(self.at(fits) for _, fits in spans)]

    def _cut_at_prices(self, shapes: Sequence[SearchPoint]) -> Sequence[SearchPoint]:
        """The same shapes, of which it is known what each keeps at all prices."""
        points = [[dataclasses.replace(shape, price=price) for price in self.prices] for shape in shapes]
        new = [row for row in points if not all(point in self._kept for point in row)]

        def cut_all(asked: Sequence[tuple[int, float]]) -> list[np.ndarray]:
            wanted = [dataclasses.replace(new[row][0], price=price) for row, price in asked]
            self._cut(wanted)
            return [self._kept[point] for point in wanted]

        for row, kept in zip(new, cuts_at_each(self.prices, len(new), cut_all)):
            self._kept.update(zip(row, kept))
        return shapes

    def _cut(self, points: Sequence[SearchPoint]) -> None:
        """Finds what is kept at some points."""
        new = [point for point in points if point not in self._kept]
        cuts = self._network.cheapest_of_each(list(map(self._question, new))) if new else ()
        self._kept.update((point, kept) for point, (kept, _) in zip(new, cuts))

    def _question(self, point: SearchPoint) -> tuple[np.ndarray, np.ndarray]:
        """[V] the price of keeping each value at a point, and what must be kept."""
        graph = self.graph
        at_a_price = (graph.first_backward_read > point.peak_node) & ~self._stays
        keep_price = point.price * early_surcharge(graph) * at_a_price * graph.value_bytes + self._keep_seconds
        return keep_price, self._crossing(point.segments) | self._stays

    @functools.cached_property
    def _network(self) -> CutNetwork:
        return CutNetwork(self.graph, self._run_costs, self.structure.needed)

    def _peak_node(self, layout: Layout) -> int:
        """The first backward node at or after the peak."""
        later = layout.steps[layout.peak_step :]
        backward = later[self.graph.backward[later]]
        return int(backward[0]) if backward.size else 0


def crossing_segments(structure: Structure, segments: int) -> np.ndarray:
    """[V] bool: what passes from one of about so many segments of the forward to a later one."""
    return structure.crossing_values(structure.boundaries(segments))


def in_two_parts(graph: Graph) -> Graph:
    """The graph with the nodes after its peak marked as backward, where nothing is marked."""
    if graph.backward.any():
        return graph
    order = np.arange(graph.num_nodes)
    return dataclasses.replace(graph, backward=order > replay(graph, order).peak_step)
