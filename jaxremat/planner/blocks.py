"""From kept values to the schedule of a row of checkpoints: each one recomputes all it needs when it begins."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from jaxremat.graph.graph import Graph


def assemble_in_groups(graph: Graph, kept: np.ndarray, group: np.ndarray) -> np.ndarray:
    """The schedule of a backward that goes through groups, each of which recomputes for itself and all at once.

    Args:
      graph: a joint graph.
      kept: [V] bool, forward values that the forward leaves for the backward.
      group: [N] int, the group of each node, -1 where it has none of its own; backward nodes without one belong with
        the node before them.

    Returns:
      [T] int32: the forward nodes that an output or a kept value needs; then for each stretch of backward nodes of one
      group the forward nodes that the stretch needs, and the stretch.
    """
    schedule = _needed_by(graph, np.flatnonzero((graph.is_output | kept) & ~graph.backward[graph.producer]), None)
    late = np.flatnonzero(graph.backward).tolist()
    for _, stretch in itertools.groupby(zip(late, _inherited(group[late])), key=lambda pair: pair[1]):
        nodes = [node for node, _ in stretch]
        read = [v for node in nodes for v in graph.values_read[node] if not graph.backward[graph.producer[v]]]
        schedule += [*_needed_by(graph, [v for v in read if not kept[v]], kept), *nodes]
    return np.asarray(schedule, np.int32)


def _inherited(groups: np.ndarray) -> list[int]:
    def carry(before: int, own: int) -> int:
        return own if own >= 0 else before

    return list(itertools.accumulate(groups.tolist(), carry))


def _needed_by(graph: Graph, values: Any, kept: np.ndarray | None) -> list[int]:
    """Forward nodes, in order, that make some values from the inputs and from what is kept."""
    found: set[int] = set() if kept is not None else set(np.flatnonzero(graph.pinned & ~graph.backward).tolist())
    waiting = [*{int(graph.producer[v]) for v in values}, *found]
    found.update(waiting)
    while waiting:
        for value in graph.values_read[waiting.pop()]:
            producer = int(graph.producer[value])
            if producer not in found and (kept is None or not kept[value]):
                found.add(producer)
                waiting.append(producer)
    return sorted(found)
