"""What a schedule means: an exact replay in integers.

One node runs per step. A produced value is live from its step through its last reader before it is produced again;
a value that nobody reads, for its own step only; a model output, to the end. A node's inputs, outputs and workspace
are live together at its step. The peak is the maximum over steps, plus the resident bytes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxremat.errors import GraphError
from jaxremat.graph import Graph


@dataclasses.dataclass(frozen=True, eq=False)
class Timeline:
    """The replay of one schedule on one graph.

    Attributes:
      schedule: node run at each step.
      live_bytes: bytes live at each step, resident bytes included.
      cost: sum of the costs of all steps, in the unit of the graph's costs.
      spans: one row (value, first step, last step) per production of a value.
    """

    schedule: np.ndarray  # [T] int32
    live_bytes: np.ndarray  # [T] int64
    cost: float
    spans: np.ndarray  # [S, 3] int32

    @property
    def peak_bytes(self) -> int:
        return int(self.live_bytes.max())

    @property
    def peak_step(self) -> int:
        return int(self.live_bytes.argmax())

    def live_values(self, step: int) -> np.ndarray:
        """[K] int32: the values that are live at a step."""
        value, first, last = self.spans.T
        return value[(first <= step) & (step <= last)]


def replay(graph: Graph, schedule: Sequence[int] | np.ndarray) -> Timeline:
    """Runs a schedule on paper, exactly.

    Args:
      graph: the graph.
      schedule: [T] node ids in execution order; repeats are recomputations. Every node must run at least once.

    Returns:
      The timeline: live bytes per step, peak and cost.

    Raises:
      GraphError: if a step names no node, a node runs before one of its inputs, or a node never runs.
    """
    steps = np.asarray(schedule, np.int64).reshape(-1)
    if steps.size == 0 or steps.min() < 0 or steps.max() >= graph.num_nodes:
        raise GraphError(f"a schedule names nodes 0..{graph.num_nodes - 1}, at least once each; got {steps.size} steps")
    values_of, values_read = graph.values_of, graph.values_read
    last_made = [-1] * graph.num_values
    value, first, last = [], [], []
    for step, node in enumerate(steps.tolist()):
        for read in values_read[node]:
            made = last_made[read]
            if made < 0:
                raise GraphError(f"step {step} runs node {node} before its input, node {int(graph.producer[read])}")
            last[made] = step
        for produced in values_of[node]:
            last_made[produced] = len(value)
            value.append(produced)
            first.append(step)
            last.append(step)
    ran = np.zeros(graph.num_nodes, bool)
    ran[steps] = True
    if not ran.all():
        raise GraphError(f"{int((~ran).sum())} nodes never run, among them node {int(np.flatnonzero(~ran)[0])}")
    for produced in np.flatnonzero(graph.is_output).tolist():
        last[last_made[produced]] = steps.size - 1
    spans = np.stack([value, first, last], 1).astype(np.int32) if value else np.zeros((0, 3), np.int32)
    change = np.zeros(steps.size + 1, np.int64)
    np.add.at(change, spans[:, 1], graph.value_bytes[spans[:, 0]])
    np.add.at(change, spans[:, 2] + 1, -graph.value_bytes[spans[:, 0]])
    live = np.cumsum(change[:-1]) + graph.workspace_bytes[steps] + graph.resident_bytes
    return Timeline(steps.astype(np.int32), live, float(graph.costs[steps].sum()), spans)
