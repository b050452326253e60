"""What a schedule means: an exact replay in integers.

One node runs per step. A produced value is live from its step through its last reader before it is produced again;
a value that nobody reads, for its own step only; a model output, to the end. A node's inputs, outputs and workspace
are live together at its step. The peak is the maximum over steps, plus the resident bytes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxremat.base.errors import GraphError
from jaxremat.graph.graph import Chain, Graph
from jaxremat.graph.option_chain import OptionChain

OPERATION_KINDS = ("forward_all", "forward_checkpoint", "forward_none", "backward")


@dataclasses.dataclass(frozen=True, eq=False)
class Timeline:
    """The replay of one schedule on one graph.

    Attributes:
      schedule: node run at each step.
      live_bytes: bytes live at each step, resident bytes included.
      cost: sum of the costs of all steps, in the unit of the graph's costs.
      spans: one row (value, first step, last step) per production of a value.
      span_bytes: bytes of each span.
    """

    schedule: np.ndarray  # [T] int32
    live_bytes: np.ndarray  # [T] int64
    cost: float
    spans: np.ndarray  # [S, 3] int32
    span_bytes: np.ndarray  # [S] int64

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
    value: list[int] = []
    first: list[int] = []
    last: list[int] = []
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
    return Timeline(
        steps.astype(np.int32), live, float(graph.costs[steps].sum()), spans, graph.value_bytes[spans[:, 0]]
    )


def replay_operations(chain: Chain | OptionChain, operations: Sequence[tuple]) -> tuple[int, float]:
    """Runs Rotor operations on a chain on paper, exactly.

    The input of stage 1 is held throughout and the gradient of the last output from the start. An output is dropped
    by the `forward_none` that reads it or with the backward of the stage that read it; what `forward_all` keeps of
    stage l, its output included, with the backward of stage l.

    Args:
      chain: the chain.
      operations: pairs (kind, stage), or triples (kind, stage, option) where stages have several options; stages
        1..L, kind one of forward_all, forward_checkpoint, forward_none, backward.

    Returns:
      (peak_bytes, seconds).

    Raises:
      GraphError: if an operation is unknown, lacks what it reads, or the gradient of the input is never reached.
    """
    stages = chain if isinstance(chain, OptionChain) else OptionChain.from_chain(chain)
    length = stages.num_stages
    gradient = [stages.input_gradient_bytes, *stages.gradient_bytes]
    live = {("output", 0): stages.input_bytes, ("gradient", length): gradient[length]}
    held = peak = sum(live.values())
    seconds = 0.0
    for kind, stage, *chosen in operations:
        _require_operation(kind, stage, live, length)
        made, made_bytes, overhead_bytes, run_seconds = _effect(stages, kind, stage, *chosen)
        held += made_bytes - live.get(made, 0)
        peak = max(peak, held + overhead_bytes)
        live[made] = made_bytes
        seconds += run_seconds
        dropped = [("saved", stage), ("gradient", stage)] if kind == "backward" else []
        if kind in ("backward", "forward_none") and stage > 1:
            dropped.append(("output", stage - 1))
        held -= sum(live.pop(key, 0) for key in dropped)
    if ("gradient", 0) not in live:
        raise GraphError("the operations never reach the gradient of the input: stage 1 has no backward")
    return int(peak), seconds


def _effect(stages: OptionChain, kind: str, stage: int, chosen: int = 0) -> tuple[tuple[str, int], int, int, float]:
    """(what an operation makes, its bytes, transient bytes, seconds)."""
    option = stages.options[stage - 1][max(chosen, 0)]
    if kind == "backward":
        made_bytes = stages.gradient_bytes[stage - 2] if stage > 1 else stages.input_gradient_bytes
        return ("gradient", stage - 1), made_bytes, option.backward_overhead_bytes, option.backward_seconds
    if kind == "forward_all":
        return ("saved", stage), option.saved_bytes, option.forward_overhead_bytes, option.forward_seconds
    overhead_bytes, run_seconds = stages.fast_forward_overhead_bytes[stage - 1], stages.fast_forward_seconds[stage - 1]
    return ("output", stage), stages.output_bytes[stage - 1], overhead_bytes, run_seconds


def _require_operation(kind: str, stage: int, live: dict[tuple[str, int], int], length: int) -> None:
    """Raises GraphError where an operation is unknown or what it reads is not live."""
    if kind not in OPERATION_KINDS or not 1 <= stage <= length:
        raise GraphError(f"operation ({kind!r}, {stage}): kinds are {', '.join(OPERATION_KINDS)}, stages 1..{length}")
    if ("output", stage - 1) not in live and ("saved", stage - 1) not in live:
        raise GraphError(f"operation ({kind!r}, {stage}) runs without the output of stage {stage - 1}")
    if kind == "backward":
        for needed in (("saved", stage), ("gradient", stage)):
            if needed not in live:
                raise GraphError(f"backward of stage {stage} runs without its {needed[0]} set")
