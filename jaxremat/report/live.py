"""Live bytes of a program, step by step, by the reason why they are live."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np

from jaxremat.graph.graph import Graph
from jaxremat.graph.replay import Timeline
from jaxremat.graph.scheduled import ScheduledProgram

KINDS = ("resident", "saved", "recomputed", "transient")
"""Arguments and results; forward values waiting for the backward; forward values made again; all else."""


@dataclasses.dataclass(frozen=True, eq=False)
class LiveBytes:
    """Live bytes by kind. The rows add up to the live bytes of the timeline.

    Attributes:
      by_kind: per kind of `KINDS`, at each step.
      end_seconds: modelled time at the end of each step.
      turning_step: the step at which the backward begins.
      span_kind: index into `KINDS` of each span of the timeline.
    """

    by_kind: np.ndarray  # [4, T] int64
    end_seconds: np.ndarray  # [T] float64
    turning_step: int
    span_kind: np.ndarray  # [S] int64

    @property
    def total_bytes(self) -> np.ndarray:
        """[T] int64."""
        return self.by_kind.sum(0)

    @property
    def peak_bytes(self) -> int:
        return int(self.total_bytes.max())

    @property
    def peak_step(self) -> int:
        return int(self.total_bytes.argmax())

    @property
    def forward_seconds(self) -> float:
        return float(self.end_seconds[self.turning_step - 1]) if self.turning_step else 0.0

    @property
    def seconds(self) -> float:
        return float(self.end_seconds[-1])

    @property
    def begin_seconds(self) -> np.ndarray:
        """[T] float64: modelled time at which each step begins."""
        return np.concatenate([[0.0], self.end_seconds[:-1]])

    def sampled_steps(self, columns: int, seconds: float) -> np.ndarray:
        """[columns] the fullest step of each of `columns` equal parts of `seconds`; -1 past the end.

        A part in which no step ends shows the step that runs through it. The peak is always among the samples.
        """
        begin, total = self.begin_seconds, self.total_bytes
        edges = np.linspace(0, max(seconds, 1e-30), columns + 1)
        steps = np.full(columns, -1)
        for column, (low, high) in enumerate(itertools.pairwise(edges)):
            first = int(np.searchsorted(self.end_seconds, low, side="right"))
            last = int(np.searchsorted(begin, high, side="left"))
            if first < total.size and last > first:
                steps[column] = first + int(total[first:last].argmax())
        steps[min(int(begin[self.peak_step] / max(seconds, 1e-30) * columns), columns - 1)] = self.peak_step
        return steps

    def sampled(self, columns: int, seconds: float) -> np.ndarray:
        """[4, columns] int64: live bytes at `sampled_steps`; zero past the end."""
        steps = self.sampled_steps(columns, seconds)
        return np.where(steps >= 0, self.by_kind[:, steps], 0)


def live_bytes_of(graph: Graph, scheduled: ScheduledProgram, timeline: Timeline) -> LiveBytes:
    """Sorts the live bytes of a timeline into `KINDS`.

    Args:
      graph: a joint graph.
      scheduled: how it runs.
      timeline: its replay, or its prediction with one step per kernel.
    """
    seconds = kernel_seconds(graph, scheduled, timeline.schedule)
    turn = turning_step(graph, scheduled, timeline.schedule, seconds)
    kind = _span_kinds(graph, scheduled, timeline, turn)
    change = np.zeros((len(KINDS), timeline.schedule.size + 1), np.int64)
    np.add.at(change, (kind, timeline.spans[:, 1]), timeline.span_bytes)
    np.add.at(change, (kind, timeline.spans[:, 2] + 1), -timeline.span_bytes)
    live = np.cumsum(change[:, :-1], axis=1)
    live[KINDS.index("resident")] = graph.resident_bytes
    live[KINDS.index("transient")] = 0
    live[KINDS.index("transient")] = timeline.live_bytes - live.sum(0)
    return LiveBytes(live, _end_seconds(seconds, timeline.cost), turn, kind)


def _span_kinds(graph: Graph, scheduled: ScheduledProgram, timeline: Timeline, turn: int) -> np.ndarray:
    """[S] a span that begins after the turn was made again only if its node runs twice."""
    value, first, last = timeline.spans.T
    node = graph.producer[value]
    forward = ~graph.backward[node]
    runs = np.bincount(scheduled.steps, minlength=graph.num_nodes)
    kind = np.full(value.size, KINDS.index("transient"))
    kind[forward & (first >= turn) & (runs[node] > 1)] = KINDS.index("recomputed")
    kind[forward & (first < turn) & (last >= turn)] = KINDS.index("saved")
    return kind


def kernel_seconds(graph: Graph, scheduled: ScheduledProgram, kernels: np.ndarray) -> np.ndarray:
    """[T] seconds of each kernel: those of its node at the last of the kernels that make up a run of the node.

    A compiler writes several kernels for one node: copies of what it reads in another layout, often long before it
    runs, then the computation itself.

    Args:
      graph: a joint graph.
      scheduled: how often each node runs.
      kernels: [T] the node that each kernel belongs to.
    """
    runs = np.bincount(scheduled.steps, minlength=graph.num_nodes)
    seconds = np.zeros(kernels.size)
    order = np.argsort(kernels, kind="stable")
    for steps in np.split(order, np.flatnonzero(np.diff(kernels[order])) + 1):
        node = kernels[steps[0]]
        for run in np.array_split(steps, min(runs[node], steps.size)):
            seconds[run[-1]] = graph.costs[node]
    return seconds


def _end_seconds(seconds: np.ndarray, cost: float) -> np.ndarray:
    """Steps share the timeline's cost as their nodes do."""
    elapsed = np.cumsum(seconds)
    return elapsed * (cost / elapsed[-1]) if elapsed[-1] else np.linspace(0.0, 1.0, elapsed.size)


def turning_step(graph: Graph, scheduled: ScheduledProgram, kernels: np.ndarray, seconds: np.ndarray) -> int:
    """Where forward turns into backward: a compiler may run single kernels of one within the other.

    The least time is spent on nodes of the backward alone before it, and on nodes of the forward that run for the first
    time after it.
    """
    if not seconds.any():
        return min(scheduled.backward_start, kernels.size)
    in_forward = np.zeros(graph.num_nodes, bool)
    in_forward[scheduled.steps[: scheduled.backward_start]] = True
    last_of_first_run = np.zeros(kernels.size, bool)
    timed = np.flatnonzero(seconds)
    last_of_first_run[timed[np.unique(kernels[timed], return_index=True)[1]]] = True
    of_forward = in_forward[kernels]
    backward_before = np.concatenate([[0.0], np.cumsum(seconds * ~of_forward)])
    forward_before = np.concatenate([[0.0], np.cumsum(seconds * (last_of_first_run & of_forward))])
    return int(np.argmin(backward_before + forward_before[-1] - forward_before))
