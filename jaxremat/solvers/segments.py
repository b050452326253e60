"""Schedules that drop the values of whole segments and run the segments again where they are read.

A graph is cut at a *turn*: its front (the forward part of a gradient program) runs once, in order; then the back
runs, and whenever it reads a front value that was dropped, the segment of that value runs again. A *cut* at position
c of the front keeps all that crosses it: the values produced at or before c that a later front node reads. So a
segment needs only its own cut. Which cuts are made, at first and when a segment runs again, is a `Splitter`'s choice.
"""

from __future__ import annotations

import bisect
from typing import Any, Protocol

import numpy as np

from jaxremat.graph.graph import Graph


class Splitter(Protocol):
    """Chooses cuts."""

    def __call__(self, base: int, end: int) -> list[int]:
        """Increasing cuts strictly between `base` (a cut, or -1) and `end`, for a run of the nodes base + 1..end."""
        ...


class FrontNodes:
    """The front of a graph: who reads its values, and how many bytes it would store or keep at each position.

    Attributes:
      graph: the graph.
      turn: last node of the front.
      stored_bytes: [turn + 1] bytes of the values up to each position that the back reads.
      crossing_bytes: [turn + 1] bytes that a cut at each position keeps.
    """

    def __init__(self, graph: Graph, turn: int) -> None:
        self.graph, self.turn = graph, turn
        self.num_values = int(np.searchsorted(graph.producer, turn, side="right"))
        self.producer = graph.producer.tolist()
        readers = graph.readers[: self.num_values]
        self.front_readers = [[r for r in who if r <= turn] for who in readers]
        self.last_back_reader = [who[-1] if who and who[-1] > turn else -1 for who in readers]
        stored, crossing = np.zeros(turn + 1, np.int64), np.zeros(turn + 2, np.int64)
        for value, (size, made) in enumerate(zip(graph.value_bytes.tolist(), self.producer[: self.num_values])):
            if self.last_back_reader[value] >= 0:
                stored[made] += size
            if self.front_readers[value]:
                crossing[made] += size
                crossing[self.front_readers[value][-1]] -= size
        self.stored_bytes = np.cumsum(stored)
        self.crossing_bytes = np.cumsum(crossing)[: turn + 1]
        self.first_value = np.searchsorted(graph.producer, np.arange(graph.num_nodes + 1)).tolist()

    def crossing(self, cut: int, end: int) -> list[int]:
        """Values produced at or before a cut that front nodes in cut + 1..end read."""
        found = []
        for value in range(self.first_value[cut + 1]):
            readers = self.front_readers[value]
            after = bisect.bisect_right(readers, cut)
            if after < len(readers) and readers[after] <= end:
                found.append(value)
        return found

    def still_read(self, base: int, end: int, step: int) -> list[int]:
        """Values produced in base + 1..end that the back reads at node `step` or later."""
        values = range(self.first_value[base + 1], self.first_value[end + 1])
        return [value for value in values if self.last_back_reader[value] >= step]

    def cut_near(self, target: float, low: int, high: int, slack_bytes: float) -> int | None:
        """The cheapest cut in low..high within the slack of storing `target` bytes; None where low > high."""
        if low > high:
            return None
        first = int(np.searchsorted(self.stored_bytes, target - slack_bytes))
        last = int(np.searchsorted(self.stored_bytes, target + slack_bytes, side="right")) - 1
        middle = min(max(int(np.searchsorted(self.stored_bytes, target)), low), high)
        first, last = min(max(first, low), middle), max(min(last, high), middle)
        window = np.arange(first, last + 1)
        return int(min(window, key=lambda cut: (self.crossing_bytes[cut], abs(cut - middle))))


def segmented_schedule(front: FrontNodes, splitter: Splitter, always_kept: frozenset[int] = frozenset()) -> np.ndarray:
    """The schedule that a choice of cuts implies.

    Args:
      front: the front of a graph.
      splitter: chooses the cuts.
      always_kept: front values that are never dropped; the values of pinned nodes never are.

    Returns:
      [T] node ids, first runs in the given order.
    """
    graph = front.graph
    pinned = np.flatnonzero(graph.pinned[graph.producer[: front.num_values]]).tolist()
    cuts = splitter(-1, front.turn)
    held = set(always_kept).union(pinned)
    for cut in cuts:
        held.update(front.crossing(cut, front.turn))
    held.update(front.still_read(cuts[-1] if cuts else -1, front.turn, front.turn + 1))
    schedule = list(range(front.turn + 1))
    for node in range(front.turn + 1, graph.num_nodes):
        missing = _missing(front, held, graph.values_read[node])
        while missing:
            end = front.producer[missing[-1]]
            schedule += _run_again(front, splitter, cuts, held, end, node)
            missing = _missing(front, held, missing)
        schedule.append(node)
    return np.asarray(schedule, np.int32)


def _missing(front: FrontNodes, held: set[int], values: Any) -> list[int]:
    return [value for value in values if value < front.num_values and value not in held]


def _run_again(
    front: FrontNodes, splitter: Splitter, cuts: list[int], held: set[int], end: int, step: int
) -> list[int]:
    """Nodes that run so that back node `step` can read what node `end` makes; updates the cuts and what is held."""
    below = bisect.bisect_left(cuts, end)
    base = cuts[below - 1] if below else -1
    added = splitter(base, end)
    cuts[below:below] = added
    wanted = set(front.still_read(added[-1] if added else base, end, step))
    for cut in added:
        wanted.update(front.crossing(cut, end))
    wanted -= held
    nodes = _ancestors(front, held, wanted)
    held |= wanted
    return nodes


def _ancestors(front: FrontNodes, held: set[int], wanted: set[int]) -> list[int]:
    """The nodes that make the wanted values from held ones, in order."""
    waiting, nodes = [front.producer[value] for value in wanted], set()
    while waiting:
        node = waiting.pop()
        if node not in nodes:
            nodes.add(node)
            waiting += [front.producer[v] for v in front.graph.values_read[node] if v not in held]
    return sorted(nodes)
