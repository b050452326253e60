"""Shortest paths over (frontier, live values): the truth about small graphs.

A state says how many nodes have run for the first time, in the given order, and which values are live. Running a node
that has its inputs, or dropping a value, leads to the next state. Every schedule that keeps the given order of first
computations is a path, whatever it repeats and however often; Dijkstra's algorithm finds the cheapest path within a
budget, or the one with the smallest peak. O(N 2^V) states: for a dozen nodes, and for tests.
"""

from __future__ import annotations

import dataclasses
import heapq
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxremat.graph.graph import Graph

Advance = Callable[[float, float, int], float]


def cheapest_schedule(graph: Graph, budget_bytes: int) -> np.ndarray | None:
    """The cheapest schedule with the given order of first computations within a budget; None where none fits."""

    def cost_so_far(cost: float, node_cost: float, held_bytes: int) -> float:
        return cost + node_cost if held_bytes <= budget_bytes else math.inf

    return _shortest_path(graph, cost_so_far)


def smallest_schedule(graph: Graph) -> np.ndarray:
    """A schedule with the given order of first computations and the smallest possible peak."""

    def peak_so_far(peak: float, node_cost: float, held_bytes: int) -> float:
        return max(peak, float(held_bytes))

    schedule = _shortest_path(graph, peak_so_far)
    assert schedule is not None, "without a budget the given order is a path"
    return schedule


@dataclasses.dataclass(frozen=True)
class _Masks:
    """Values as bits: what each node reads and makes, and the bytes of every set of values."""

    reads: list[int]
    makes: list[int]
    outputs: int
    pinned: list[bool]
    set_bytes: np.ndarray


def _shortest_path(graph: Graph, advance: Advance) -> np.ndarray | None:
    masks, n = _masks(graph), graph.num_nodes
    held_always, workspace = graph.resident_bytes, graph.workspace_bytes.tolist()
    costs, ticket = graph.costs.tolist(), itertools.count()
    start = (0, 0)
    came_from: dict[tuple[int, int], tuple[tuple[int, int], int] | None] = {start: None}
    best, done = {start: 0.0}, set()
    queue = [(0.0, next(ticket), start)]
    while queue:
        length, _, state = heapq.heappop(queue)
        if state in done:
            continue
        done.add(state)
        frontier, live = state
        if frontier == n and live & masks.outputs == masks.outputs:
            return _path(came_from, state)
        steps = [(node, live | masks.makes[node]) for node in _runnable(masks, frontier, live, n)]
        drops = [(-1, live & ~(1 << value)) for value in range(graph.num_values) if live >> value & 1]
        for node, after in steps + drops:
            reached = (frontier + (node == frontier), after)
            held = held_always + int(masks.set_bytes[after]) + (workspace[node] if node >= 0 else 0)
            new_length = length if node < 0 else advance(length, costs[node], held)
            if new_length < best.get(reached, math.inf):
                best[reached], came_from[reached] = new_length, (state, node)
                heapq.heappush(queue, (new_length, next(ticket), reached))
    return None


def _runnable(masks: _Masks, frontier: int, live: int, n: int) -> list[int]:
    return [
        node
        for node in range(min(frontier + 1, n))
        if masks.reads[node] & ~live == 0 and (node == frontier or not masks.pinned[node])
    ]


def _path(came_from: dict[Any, Any], state: tuple[int, int]) -> np.ndarray:
    nodes = []
    while came_from[state] is not None:
        state, node = came_from[state]
        if node >= 0:
            nodes.append(node)
    return np.asarray(nodes[::-1], np.int32)


def _masks(graph: Graph) -> _Masks:
    def bits(values: Any) -> int:
        return sum(1 << value for value in values)

    set_bytes = np.zeros(1, np.int64)
    for size in graph.value_bytes.tolist():
        set_bytes = np.concatenate([set_bytes, set_bytes + size])
    return _Masks(
        reads=[bits(values) for values in graph.values_read],
        makes=[bits(values) for values in graph.values_of],
        outputs=bits(np.flatnonzero(graph.is_output).tolist()),
        pinned=graph.pinned.tolist(),
        set_bytes=set_bytes,
    )
