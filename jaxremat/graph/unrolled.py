"""A schedule is a program again: every step a node of its own, which reads what earlier steps made."""

from __future__ import annotations

import numpy as np

from jaxremat.graph.graph import Graph
from jaxremat.graph.replay import link


def unrolled(graph: Graph, steps: np.ndarray, first_late_step: int) -> Graph:
    """The graph whose nodes are the steps of a schedule, in two parts.

    Args:
      graph: the graph.
      steps: [T] node ids that replay.
      first_late_step: steps from this one on are marked as `backward`: they come after what is to be cut.

    Returns:
      A graph of T nodes; step t of the schedule is its node t, and the schedule runs it in the given order.
    """
    links = link(graph, steps)
    is_output = np.zeros(links.value.size, bool)
    is_output[links.last_of(graph.is_output)] = True
    reads = np.stack([links.read, links.reader], 1)
    return Graph(
        costs=graph.costs[steps],
        workspace_bytes=graph.workspace_bytes[steps],
        value_bytes=graph.value_bytes[links.value],
        producer=links.step.astype(np.int32),
        reads=reads[np.lexsort(reads.T)].astype(np.int32),
        is_output=is_output,
        resident_bytes=graph.resident_bytes,
        backward=np.arange(steps.size) >= first_late_step,
        pinned=graph.pinned[steps],
        rerun_surcharge=graph.rerun_surcharge[steps],
    )
