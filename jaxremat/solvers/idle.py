"""Runs that nobody needs."""

from __future__ import annotations

import numpy as np

from jaxremat.graph.graph import Graph


def without_idle_runs(graph: Graph, schedule: np.ndarray) -> np.ndarray:
    """The schedule without the runs whose values are made again, or never read, before any node reads them.

    Neither the peak nor the cost grows, and every node still runs at least once.

    Args:
      graph: the graph.
      schedule: [T] node ids that replay.
    """
    wanted, ran_later = graph.is_output.tolist(), [False] * graph.num_nodes
    first_run = np.zeros(graph.num_nodes, np.int64)
    first_run[schedule[::-1]] = np.arange(schedule.size)[::-1]
    kept = []
    for step, node in reversed(list(enumerate(schedule.tolist()))):
        read_later = any(wanted[value] for value in graph.values_of[node])
        if not read_later and (ran_later[node] or step != first_run[node]):
            continue
        kept.append(node)
        ran_later[node] = True
        for value in graph.values_of[node]:
            wanted[value] = False
        for value in graph.values_read[node]:
            wanted[value] = True
    return np.asarray(kept[::-1], np.int32)
