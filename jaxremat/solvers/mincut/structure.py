"""What the planner needs to know of a joint graph, computed once."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from jaxremat.graph.graph import Graph
from jaxremat.graph.valleys import hills

SEGMENTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48)  # about half as many again each time; benchmarks/constants.py
_CHEAP_FRACTION = 2e-3  # benchmarks/constants.py
_EARLY_SURCHARGE = 0.2  # benchmarks/surcharge.py; benchmarks/constants.py


@dataclasses.dataclass(frozen=True, eq=False)
class Structure:
    """Facts about a joint graph.

    Attributes:
      graph: the graph; nodes with `graph.backward` depend on a cotangent.
    """

    graph: Graph

    @functools.cached_property
    def forward_nodes(self) -> np.ndarray:
        """[F] ids of the forward nodes."""
        return np.flatnonzero(~self.graph.backward)

    @functools.cached_property
    def rerun_costs(self) -> np.ndarray:
        """[N] what running each node again is taken to cost; infinite where it makes an output, which stays live."""
        costs = self.graph.rerun_costs.copy()
        costs[self.graph.producer[self.graph.is_output]] = np.inf
        return costs

    @functools.cached_property
    def mean_price(self) -> float:
        """What running the forward again costs per byte that it makes."""
        forward = self.forward_nodes
        return float(self.graph.costs[forward].sum() / max(self.graph.node_bytes[forward].sum(), 1))

    @functools.cached_property
    def is_forward_value(self) -> np.ndarray:
        """[V] bool."""
        return ~self.graph.backward[self.graph.producer]

    @functools.cached_property
    def is_read(self) -> np.ndarray:
        """[V] bool: values that any node reads."""
        read = np.zeros(self.graph.num_values, bool)
        read[self.graph.reads[:, 0]] = True
        return read

    @functools.cached_property
    def needed(self) -> np.ndarray:
        """[V] bool: forward values that the backward reads."""
        return self.is_forward_value & (self.graph.first_backward_read < self.graph.num_nodes)

    @functools.cached_property
    def last_forward_read(self) -> np.ndarray:
        """[V] the last forward node that reads each value, or its producer."""
        last = self.graph.producer.astype(np.int64)
        value, node = self.graph.reads[~self.graph.backward[self.graph.reads[:, 1]]].T
        np.maximum.at(last, value, node)
        return last

    @functools.cached_property
    def is_cheap(self) -> np.ndarray:
        """[V] bool: values that the program's inputs give almost for free (masks, positions, casts of weights)."""
        limit = _CHEAP_FRACTION * self.graph.costs[self.forward_nodes].sum()
        costs, producer = self.graph.costs.tolist(), self.graph.producer.tolist()
        makes: list[frozenset[int] | None] = [None] * self.graph.num_nodes  # all that a cheap node is made by
        for node in self.forward_nodes.tolist():
            parents = [makes[producer[value]] for value in self.graph.values_read[node]]
            if costs[node] < limit and None not in parents:
                closure = frozenset((node,)).union(*(parent for parent in parents if parent is not None))
                makes[node] = closure if sum(costs[n] for n in closure) < limit else None
        return np.asarray([makes[node] is not None for node in producer], bool)

    @functools.cached_property
    def crossing_bytes(self) -> np.ndarray:
        """[F] bytes of forward values, cheap ones aside, that pass from forward nodes up to each one to later ones."""
        change = np.zeros(self.graph.num_nodes + 1, np.int64)
        counted = self.is_forward_value & ~self.is_cheap
        np.add.at(change, self.graph.producer[counted], self.graph.value_bytes[counted])
        np.add.at(change, self.last_forward_read[counted], -self.graph.value_bytes[counted])
        return np.cumsum(change)[self.forward_nodes]

    @functools.cached_property
    def blocks(self) -> np.ndarray:
        """[N] number of the block that each forward node lies in; -1 for backward nodes, and where there are not two.

        Blocks end where half as much passes on as inside of those on both sides: a residual stream, what one layer
        hands to the next.
        """
        ends = [end for _, end in hills(self.crossing_bytes)]
        return self.parted(self.forward_nodes[np.asarray(ends[:-1], np.int64) - 1])

    def parted(self, boundaries: np.ndarray) -> np.ndarray:
        """[N] between which boundaries, ascending nodes that end parts, each forward node lies; -1 for backward nodes,
        and for all where there is no boundary."""
        part = np.searchsorted(boundaries, np.arange(self.graph.num_nodes))
        return np.where(self.graph.backward | (boundaries.size == 0), -1, part)

    def narrowest(self, first: int, end: int) -> tuple[int, int]:
        """The last forward node from one up to another, that one aside, after which the least passes on; and how many
        bytes that is."""
        low, high = np.searchsorted(self.forward_nodes, (first, end)).tolist()
        place = high - 1 - int(self.crossing_bytes[low:high][::-1].argmin())
        return int(self.forward_nodes[place]), int(self.crossing_bytes[place])

    def boundaries(self, segments: int) -> np.ndarray:
        """Forward nodes that end all but the last of about `segments` parts of equal bytes, at the narrowest places."""
        produced = np.cumsum(self.graph.node_bytes[self.forward_nodes])
        ends = []
        for k in range(1, segments):
            low, high = (k - 0.5) * produced[-1] / segments, (k + 0.5) * produced[-1] / segments
            inside = np.flatnonzero((low <= produced) & (produced < high))
            if inside.size:
                ends.append(self.forward_nodes[inside[self.crossing_bytes[inside].argmin()]])
        return np.unique(np.asarray(ends, np.int64))

    def parts(self, number: int) -> np.ndarray:
        """[N] in which of about so many parts of equal bytes each node lies; see `boundaries`."""
        return np.searchsorted(self.boundaries(number), np.arange(self.graph.num_nodes))

    def crossing_values(self, boundaries: np.ndarray) -> np.ndarray:
        """[V] bool: forward values, cheap ones aside, that cross any of the boundaries, ascending nodes."""
        made, last = (np.searchsorted(boundaries, node) for node in (self.graph.producer, self.last_forward_read))
        return (made < last) & self.is_forward_value & ~self.is_cheap


def early_surcharge(graph: Graph) -> np.ndarray:
    """[V] factor on the price of a kept byte, `surcharge` at the place of the value's node in the program."""
    return surcharge(graph.producer / max(graph.num_nodes, 1))


def surcharge(place: np.ndarray) -> np.ndarray:
    """Factor on the price of a byte that is kept from a place of the forward on, 0 for its begin and 1 for its end.

    What is kept early is held longest, and equal layers must not all change their mind at the same price: with a factor
    that falls along the forward they do so one after another, the earliest first. `benchmarks/surcharge.py` prints what
    other slopes give: on average over budgets, steeper ones cost less up to about this one.
    """
    return 1 + _EARLY_SURCHARGE * (1 - place)


def ends_of_groups(ends: np.ndarray, groups: int) -> np.ndarray:
    """Of the nodes that end all but the last of some parts, those that end all but the last of `groups` groups."""
    return ends[np.linspace(0, ends.size + 1, groups + 1).astype(int)[1:-1] - 1] if ends.size else ends
