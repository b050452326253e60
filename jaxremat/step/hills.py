"""The hills of a step's memory as programs of their own, and for each the place at which to cut it.

A gradient is a hill: values pile up, then are read in turn. A step may hold several, one after another (two
players, several losses), and inside one others (gradients of gradients). What was made before a place and is read after
it is what can be made again instead: no derivative is needed to say so, and no name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from jaxremat.graph.graph import Graph
from jaxremat.solvers.mincut.cut import cheapest_cut

_PLACES = 12  # benchmarks/constants.py
_AS_MUCH = 0.95  # benchmarks/constants.py
_DEAR = 30  # times the mean price of a byte; benchmarks/constants.py


@dataclasses.dataclass(frozen=True, eq=False)
class Section:
    """Some consecutive nodes of a graph, as a graph of their own.

    Attributes:
      first, end: the nodes.
      graph: node 0 makes what the others read from before them; node i + 1 is node `first + i`.
    """

    first: int
    end: int
    graph: Graph

    def nodes(self, steps: np.ndarray) -> np.ndarray:
        """Steps of the section's graph as nodes of the whole."""
        return steps[steps > 0] + self.first - 1


def section(graph: Graph, first: int, end: int) -> Section:
    """The nodes [first, end) as a graph: what they read from before is made by one node that never runs again; what
    later nodes read stays to the end; what only passes by is resident."""
    value, node = graph.reads.T
    inside, later = (node >= first) & (node < end), node >= end
    read_inside, read_later = (np.zeros(graph.num_values, bool) for _ in range(2))
    read_inside[value[inside]] = True
    read_later[value[later]] = True
    read_later |= graph.is_output
    early = graph.producer < first
    own = (graph.producer >= first) & (graph.producer < end)
    chosen = np.flatnonzero((early & read_inside) | own)
    number = np.full(graph.num_values, -1, np.int64)
    number[chosen] = np.arange(chosen.size)
    passing = early & read_later & ~read_inside
    reads = np.stack([number[value[inside]], node[inside] - first + 1], 1)
    return Section(
        first,
        end,
        Graph(
            costs=np.concatenate([[0.0], graph.costs[first:end]]),
            workspace_bytes=np.concatenate([[0], graph.workspace_bytes[first:end]]),
            value_bytes=graph.value_bytes[chosen],
            producer=np.where(early[chosen], 0, graph.producer[chosen] - first + 1).astype(np.int32),
            reads=reads[np.lexsort(reads.T)].astype(np.int32),
            is_output=read_later[chosen],
            resident_bytes=graph.resident_bytes + int(graph.value_bytes[passing].sum()),
            pinned=np.concatenate([[True], graph.pinned[first:end]]),
        ),
    )


def cut_at(graph: Graph, node: int) -> Graph:
    """The same graph with all from a node on taken as the part that reads what was made before."""
    return dataclasses.replace(graph, backward=np.arange(graph.num_nodes) >= node)


def best_cut(graph: Graph, run_seconds: np.ndarray, live_bytes: np.ndarray, behind: np.ndarray | None = None) -> Graph:
    """A hill cut at the node where making values again gains the most.

    At the mean price of a byte, a minimum cut says what the values that pass a node cost when each is kept or made
    again, whichever is cheaper; the gain is what that saves over keeping all. Gradients, which take the whole program
    to make, gain nothing; activations do. The fullest node of each of some equal parts is tried; of those that gain
    about as much as any, the fullest is taken.

    Args:
      graph: a section.
      run_seconds: [N] what running each node again is taken to cost.
      live_bytes: [N] when it runs in order.
      behind: [N] bool, nodes right behind which a cut may lie: it moves up to there; anywhere by default.
    """
    price = graph.mean_price
    places = [first + int(live_bytes[first:end].argmax()) for first, end in _parts(graph.num_nodes)]
    if behind is not None:
        places = [1 + int(np.flatnonzero(behind[:place]).max(initial=0)) for place in places]
    gains = {place: _gain(cut_at(graph, place), price, run_seconds) for place in dict.fromkeys(places) if place > 1}
    most = max(gains.values(), default=0.0)
    good = [place for place, gain in gains.items() if gain >= _AS_MUCH * most]
    return cut_at(graph, max(good, key=lambda place: live_bytes[place], default=graph.num_nodes))


def last_reader(graph: Graph, run_seconds: np.ndarray) -> int:
    """The last node of a cut hill that reads what was made before the cut and might be made again.

    What follows, such as an optimizer's update, reads gradients alone: those are kept whatever is decided, unless a
    byte is worth many times the mean.
    """
    value, node = graph.reads.T
    needed, kept, _ = _at_price(graph, _DEAR * graph.mean_price, run_seconds)
    return int(node[(needed & ~kept)[value] & graph.backward[node]].max(initial=0))


def _gain(graph: Graph, price: float, run_seconds: np.ndarray) -> float:
    needed, kept, again = _at_price(graph, price, run_seconds)
    keep_price = price * graph.value_bytes
    seconds = run_seconds[again & np.isfinite(run_seconds)].sum()
    return float(keep_price[needed].sum() - keep_price[kept].sum() - seconds)


def _at_price(graph: Graph, price: float, run_seconds: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(values that pass the cut [V], those of them that are kept [V], nodes that run again [N]) at a price per byte."""
    value, node = graph.reads.T
    needed = np.zeros(graph.num_values, bool)
    needed[value[graph.backward[node]]] = True
    needed &= ~graph.backward[graph.producer]
    kept, again = cheapest_cut(graph, price * graph.value_bytes, run_seconds, needed, np.zeros(graph.num_values, bool))
    return needed, kept, again


def _parts(number: int) -> Iterator[tuple[int, int]]:
    bounds = np.linspace(0, number, _PLACES + 1).astype(int)
    return ((a, b) for a, b in zip(bounds.tolist(), bounds[1:].tolist()) if a < b)
