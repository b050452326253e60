"""What a schedule means: an exact replay in integers.

One node runs per step. A produced value is live from its step through its last reader before it is produced again;
a value that nobody reads, for its own step only; a model output, to the end. A node's inputs, outputs and workspace
are live together at its step. The peak is the maximum over steps, plus the resident bytes.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from jaxremat.base.errors import GraphError
from jaxremat.base.shapes import Int32, Int64, Integer
from jaxremat.graph.graph import Chain, Graph

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
      gap_bytes: of what is live where most is, what lies between buffers; none in a replay.
    """

    schedule: Int32[np.ndarray, " steps"]
    live_bytes: Int64[np.ndarray, " steps"]
    cost: float
    spans: Int32[np.ndarray, "spans 3"]
    span_bytes: Int64[np.ndarray, " spans"]
    gap_bytes: int = 0

    @functools.cached_property
    def peak_bytes(self) -> int:
        return int(self.live_bytes.max())

    @property
    def peak_step(self) -> int:
        return int(self.live_bytes.argmax())

    def live_values(self, step: int) -> Int32[np.ndarray, " live"]:
        """[K] int32: the values that are live at a step."""
        value, first, last = self.spans.T
        return value[(first <= step) & (step <= last)]


def replay(graph: Graph, schedule: Sequence[int] | Integer[np.ndarray, " steps"]) -> Timeline:
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
    links = link(graph, steps)
    ran = np.zeros(graph.num_nodes, bool)
    ran[steps] = True
    if not ran.all():
        raise GraphError(f"{int((~ran).sum())} nodes never run, among them node {int(np.flatnonzero(~ran)[0])}")
    return replay_linked(graph, steps, links)


def replay_linked(graph: Graph, steps: np.ndarray, links: Links) -> Timeline:
    """The same for [T] int64 steps whose links are known: nothing is checked again."""
    first, last = links.step, links.step.copy()
    np.maximum.at(last, links.read, links.reader)
    last[links.last_of(graph.is_output)] = steps.size - 1
    span_bytes = graph.value_bytes[links.value]
    change = np.zeros(steps.size + 1, np.int64)
    np.add.at(change, first, span_bytes)
    np.add.at(change, last + 1, -span_bytes)
    live = np.cumsum(change[:-1]) + graph.workspace_bytes[steps] + graph.resident_bytes
    spans = np.stack([links.value, first, last], 1).astype(np.int32)
    return Timeline(steps.astype(np.int32), live, float(graph.costs[steps].sum()), spans, span_bytes)


@dataclasses.dataclass(frozen=True, eq=False)
class Links:
    """Who reads what in a schedule: S productions of values, in the order of the steps, and R reads of them.

    Attributes:
      value: what each production makes.
      step: the step of each production.
      read: the production that each read is of: the latest before it.
      reader: the step of each read.
    """

    value: np.ndarray  # [S] int64
    step: np.ndarray  # [S] int64
    read: np.ndarray  # [R] int64
    reader: np.ndarray  # [R] int64

    def last_of(self, wanted: np.ndarray) -> np.ndarray:
        """The last production of each wanted value ([V] bool)."""
        last = np.zeros(wanted.size, np.int64)
        last[self.value] = np.arange(self.value.size)
        return last[wanted]

    def among(self, kept: np.ndarray) -> Links:
        """The links of what is left of the schedule: some steps ([T] bool), which read only what they make."""
        made, reads = kept[self.step], kept[self.reader]
        step, production = np.cumsum(kept) - 1, np.cumsum(made) - 1
        return Links(self.value[made], step[self.step[made]], production[self.read[reads]], step[self.reader[reads]])


def link(graph: Graph, steps: np.ndarray) -> Links:
    """Links the reads of a schedule to productions.

    Raises:
      GraphError: if a node runs before one of its inputs.
    """
    value, step = _occurrences(graph.value_start, np.arange(graph.num_values), steps)
    read, reader = _occurrences(graph.read_start, graph.reads[:, 0], steps)
    moment = value * steps.size + step
    order = np.argsort(moment)
    before = np.searchsorted(moment[order], read * steps.size + reader) - 1
    made = order[np.maximum(before, 0)] if order.size else np.zeros(0, np.int64)
    missing = np.flatnonzero((before < 0) | (value[made] != read)) if order.size else np.arange(read.size)
    if missing.size:
        late, input_node = int(reader[missing[0]]), int(graph.producer[read[missing[0]]])
        raise GraphError(f"step {late} runs node {int(steps[late])} before its input, node {input_node}")
    return Links(value, step, made, reader)


def _occurrences(row_start: np.ndarray, entries: np.ndarray, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(entry, step) of every entry in the rows of the nodes that run, in the order of the steps."""
    counts = (row_start[1:] - row_start[:-1])[steps]
    step = np.repeat(np.arange(steps.size), counts)
    within = np.arange(step.size) - np.repeat(np.cumsum(counts) - counts, counts)
    return entries[row_start[steps[step]] + within].astype(np.int64), step


def replay_operations(chain: Chain, operations: Sequence[tuple[str, int]]) -> tuple[int, float]:
    """Runs Rotor operations on a chain on paper, exactly.

    The input of stage 1 is held throughout and the gradient of the last output from the start. An output is dropped
    by the `forward_none` that reads it or with the backward of the stage that read it; what `forward_all` keeps of
    stage l, its output included, with the backward of stage l.

    Args:
      chain: the chain.
      operations: pairs (kind, stage); stages 1..L, kind one of forward_all, forward_checkpoint, forward_none, backward.

    Returns:
      (peak_bytes, seconds).

    Raises:
      GraphError: if an operation is unknown, lacks what it reads, or the gradient of the input is never reached.
    """
    length = chain.num_stages
    live = {("output", 0): chain.input_bytes, ("gradient", length): int(chain.gradient_bytes[-1])}
    held = peak = sum(live.values())
    seconds = 0.0
    for kind, stage in operations:
        _require_operation(kind, stage, live, length)
        made, made_bytes, overhead_bytes, run_seconds = _effect(chain, kind, stage)
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


def _effect(chain: Chain, kind: str, stage: int) -> tuple[tuple[str, int], int, int, float]:
    """(what an operation makes, its bytes, transient bytes, seconds)."""
    i = stage - 1
    if kind == "backward":
        made_bytes = int(chain.gradient_bytes[i - 1]) if i else chain.input_bytes
        overhead_bytes, seconds = int(chain.backward_overhead_bytes[i]), float(chain.backward_seconds[i])
        return ("gradient", i), made_bytes, overhead_bytes, seconds
    saves = kind == "forward_all"
    made_bytes = int(chain.saved_bytes[i] if saves else chain.output_bytes[i])
    overhead_bytes, seconds = int(chain.forward_overhead_bytes[i]), float(chain.forward_seconds[i])
    return ("saved" if saves else "output", stage), made_bytes, overhead_bytes, seconds


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
