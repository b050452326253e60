"""Runs that nobody needs."""

from __future__ import annotations

import heapq

import numpy as np

from jaxremat.graph.graph import Graph
from jaxremat.graph.replay import Links, link
from jaxremat.graph.scheduled import first_runs


def without_dead_runs(graph: Graph, schedule: np.ndarray) -> np.ndarray:
    """The schedule without the runs whose values are made again, or never read, before any node reads them.

    Neither the peak nor the cost grows, and every node still runs at least once.

    Args:
      graph: the graph.
      schedule: [T] node ids that replay.
    """
    return schedule[needed_runs(graph, schedule, link(graph, schedule))]


def needed_runs(graph: Graph, schedule: np.ndarray, links: Links) -> np.ndarray:
    """[T] bool: the steps that `without_dead_runs` leaves."""
    made_at = links.step[links.read]
    readers = np.bincount(made_at, minlength=schedule.size)
    readers += np.bincount(links.step[links.last_of(graph.is_output)], minlength=schedule.size)
    needed = np.ones(schedule.size, bool)
    waiting = (-np.flatnonzero(readers == 0)).tolist()  # a heap: the last steps first
    reads_from = np.searchsorted(links.reader, np.arange(schedule.size + 1))
    runs = np.bincount(schedule, minlength=graph.num_nodes)
    is_first = first_runs(schedule)
    heapq.heapify(waiting)
    while waiting:
        step = -heapq.heappop(waiting)
        if is_first[step] and runs[schedule[step]] == 1:
            continue
        needed[step] = False
        runs[schedule[step]] -= 1
        for source in made_at[reads_from[step] : reads_from[step + 1]].tolist():
            readers[source] -= 1
            if not readers[source]:
                heapq.heappush(waiting, -source)
    return needed
