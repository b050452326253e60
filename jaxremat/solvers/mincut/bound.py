"""What no schedule within a budget can cost less than: Lagrangian bounds from minimum cuts.

When a node runs for the first time, what it was made from has run, and what is made from it has not. Of all that its
ancestors made and its descendants, or the end, still need, only what fits in the budget beside it is live; the rest has
to be made again. Which values these are is a minimum cut, once the budget has a price: for every price and every node,
the cut less the price of the budget is a bound, whatever the order of the schedule (Lagrangian relaxation; Geoffrion,
1974). Nodes beside the ancestors and descendants may run for the first time later, and so count nothing.

One moment is looked at by itself: of programs with several peaks in a row, the bound knows the worst one.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxremat.graph.graph import Graph
from jaxremat.graph.replay import replay
from jaxremat.solvers.mincut.cut import CutNetwork

_MOST_MOMENTS = 16  # neighbours in the order of a program hold nearly the same; benchmarks/constants.py
_HALVINGS = 10  # of the ratio between two prices; benchmarks/constants.py
_WIDEST = 1e4  # between the mean price of a byte and the lowest and highest that are tried; benchmarks/constants.py
_PART = 2.0**-29  # of a cut that is known: capacities are rounded up to such parts, see `cut`


def lower_bound(graph: Graph, budget_bytes: int) -> float:
    """A cost that no schedule within a budget can beat; at least that of running every node once."""
    again = (_Moment(graph, node).bound(budget_bytes) for node in _crowded(graph, budget_bytes))
    return float(graph.costs.sum()) + max(again, default=0.0)


def _crowded(graph: Graph, budget_bytes: int) -> list[int]:
    """Nodes at which the graph as it stands is above a budget, spread evenly."""
    live = replay(graph, np.arange(graph.num_nodes)).live_bytes
    over = np.flatnonzero(live > budget_bytes)
    chosen = np.linspace(0, over.size - 1, min(over.size, _MOST_MOMENTS)).astype(int)
    return over[chosen].tolist()


class _Moment:
    """The first run of a node."""

    def __init__(self, graph: Graph, node: int):
        later = _reached(graph, node, forwards=True)
        earlier = _reached(graph, node, forwards=False)
        self._held = np.zeros(graph.num_values, bool)
        self._held[[*graph.values_read[node], *graph.values_of[node]]] = True
        self._beside = graph.resident_bytes + int(graph.workspace_bytes[node])
        after = later & (np.arange(graph.num_nodes) != node)
        needed = graph.is_output.copy()
        value, reader = graph.reads.T
        needed[value[after[reader]]] = True
        self._sizes = graph.value_bytes.astype(float)
        self._costs = np.where(earlier | (np.arange(graph.num_nodes) == node), graph.costs, 0.0)
        self._mean_price = graph.mean_price
        joint = dataclasses.replace(graph, backward=after)
        wanted = (needed | self._held) & ~after[graph.producer]
        self._wanted_bytes = float(self._sizes[wanted].sum())
        self._arcs = graph.num_nodes + graph.num_values
        run_costs = np.where(graph.pinned & earlier, np.inf, self._costs)
        self._network = CutNetwork(joint, run_costs, wanted)

    def bound(self, budget_bytes: int) -> float:
        """What must be made again at least, in the unit of costs."""
        room = budget_bytes - self._beside
        low, high = self._mean_price / _WIDEST, self._mean_price * _WIDEST
        best = 0.0
        for _ in range(_HALVINGS):
            price = float(np.sqrt(low * high))
            kept, again = self._network.cheapest(price * self._sizes, self._held)
            kept_bytes = float(self._sizes[kept | self._held].sum())
            total = float(self._costs[again].sum()) + price * kept_bytes
            rounding = self._arcs * _PART * price * self._wanted_bytes  # to keep all that is wanted is a cut
            best = max(best, total - rounding - price * room)
            low, high = (price, high) if kept_bytes > room else (low, price)
        return best


def _reached(graph: Graph, node: int, *, forwards: bool) -> np.ndarray:
    """[N] bool: the node's descendants, or its ancestors, and itself."""
    value, reader = graph.reads.T
    maker = graph.producer[value]
    sources, ends = (maker, reader) if forwards else (reader, maker)
    reached = np.zeros(graph.num_nodes, bool)
    reached[node] = True
    while True:
        new = np.zeros_like(reached)
        new[ends[reached[sources]]] = True
        if not (new & ~reached).any():
            return reached
        reached |= new
