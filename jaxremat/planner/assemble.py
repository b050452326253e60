"""From a choice of kept values to a schedule: recompute just in time, in the order of the backward."""

from __future__ import annotations

import numpy as np

from jaxremat.graph import Graph


def assemble(graph: Graph, kept: np.ndarray) -> np.ndarray:
    """The schedule that keeps `kept` between forward and backward and recomputes what else the backward reads.

    Args:
      graph: a joint graph (`graph.backward` says which nodes depend on a cotangent).
      kept: [V] bool, forward values that the forward leaves for the backward.

    Returns:
      [T] int32: forward nodes that an output or a kept value needs, in order; then the backward nodes in order, each
      preceded by the forward nodes that it still needs.
    """
    forward = forward_part(graph, kept)
    available = kept.copy()
    steps = list(forward)
    for node in np.flatnonzero(graph.backward).tolist():
        for again in _missing(graph, node, available):
            steps.append(again)
            available[list(graph.values_of[again])] = True
        steps.append(node)
        available[list(graph.values_of[node])] = True
    return np.asarray(steps, np.int32)


def forward_part(graph: Graph, kept: np.ndarray) -> list[int]:
    """The forward nodes that an output or a kept value needs, in order."""
    wanted = (graph.is_output | kept) & ~graph.backward[graph.producer]
    run = graph.pinned & ~graph.backward
    run[graph.producer[wanted]] = True
    for node in range(graph.num_nodes - 1, -1, -1):
        if run[node]:
            run[graph.producer[list(graph.values_read[node])]] = True
    return np.flatnonzero(run).tolist()


def _missing(graph: Graph, node: int, available: np.ndarray) -> list[int]:
    """Forward nodes to run, in order, so that `node` can."""
    missing: set[int] = set()
    waiting = [node]
    while waiting:
        for value in graph.values_read[waiting.pop()]:
            producer = int(graph.producer[value])
            if not available[value] and producer not in missing:
                missing.add(producer)
                waiting.append(producer)
    return sorted(missing)
