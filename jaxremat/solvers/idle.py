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
    return schedule[needed_runs(graph, schedule)]


def needed_runs(graph: Graph, schedule: np.ndarray) -> np.ndarray:
    """[T] bool: the steps that `without_idle_runs` leaves."""
    wanted, ran_later = graph.is_output.tolist(), [False] * graph.num_nodes
    first_run = np.zeros(graph.num_nodes, np.int64)
    first_run[schedule[::-1]] = np.arange(schedule.size)[::-1]
    is_first = (first_run[schedule] == np.arange(schedule.size)).tolist()
    values_of, values_read = graph.values_of, graph.values_read
    needed = np.zeros(schedule.size, bool)
    for step, node in reversed(list(enumerate(schedule.tolist()))):
        read_later = any([wanted[value] for value in values_of[node]])
        if not read_later and (ran_later[node] or not is_first[step]):
            continue
        needed[step] = ran_later[node] = True
        for value in values_of[node]:
            wanted[value] = False
        for value in values_read[node]:
            wanted[value] = True
    return needed
