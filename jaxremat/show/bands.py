"""Live bytes of a schedule, step by step, by the reason why they are live."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np

from jaxremat.graph.graph import Graph
from jaxremat.graph.replay import Timeline

KINDS = ("parameters", "saved", "recomputed", "transient")
"""Resident arguments and results; forward values waiting for the backward; forward values made again; all else."""


@dataclasses.dataclass(frozen=True, eq=False)
class Bands:
    """Live bytes by kind. The rows add up to the live bytes of the replay.

    Attributes:
      live_bytes: per kind of `KINDS`, at each step.
      end_seconds: modelled time at the end of each step.
      start: the step at which the backward begins.
    """

    live_bytes: np.ndarray  # [4, T] int64
    end_seconds: np.ndarray  # [T] float64
    start: int

    @property
    def total_bytes(self) -> np.ndarray:
        """[T] int64."""
        return self.live_bytes.sum(0)

    @property
    def peak_bytes(self) -> int:
        return int(self.total_bytes.max())

    @property
    def peak_step(self) -> int:
        return int(self.total_bytes.argmax())

    @property
    def forward_seconds(self) -> float:
        return float(self.end_seconds[self.start - 1]) if self.start else 0.0

    @property
    def seconds(self) -> float:
        return float(self.end_seconds[-1])

    def sampled(self, columns: int, seconds: float) -> np.ndarray:
        """[4, columns] int64: the fullest step of each of `columns` equal parts of `seconds`; zero past the end.

        A part in which no step ends shows the step that runs through it. The peak is always among the samples.
        """
        steps = self.end_seconds.size
        begin = np.concatenate([[0.0], self.end_seconds[:-1]])
        edges = np.linspace(0, max(seconds, 1e-30), columns + 1)
        out = np.zeros((len(KINDS), columns), np.int64)
        total = self.total_bytes
        for column, (low, high) in enumerate(itertools.pairwise(edges)):
            first = int(np.searchsorted(self.end_seconds, low, side="right"))
            last = int(np.searchsorted(begin, high, side="left"))
            if first < steps and last > first:
                fullest = first + int(total[first:last].argmax())
                out[:, column] = self.live_bytes[:, fullest]
        at_peak = min(int(begin[self.peak_step] / max(seconds, 1e-30) * columns), columns - 1)
        out[:, at_peak] = self.live_bytes[:, self.peak_step]
        return out


def bands_of(graph: Graph, timeline: Timeline) -> Bands:
    """Sorts the live bytes of a timeline into `KINDS`.

    Args:
      graph: a joint graph.
      timeline: a replay of it, or a prediction with one step per kernel.
    """
    steps = timeline.schedule.size
    start = _turning_step(graph, timeline.schedule)
    value, first, last = timeline.spans.T
    forward = ~graph.backward[graph.producer[value]]
    kind = np.full(value.size, KINDS.index("transient"))
    kind[forward & (first >= start)] = KINDS.index("recomputed")
    kind[forward & (first < start) & (last >= start)] = KINDS.index("saved")
    change = np.zeros((len(KINDS), steps + 1), np.int64)
    np.add.at(change, (kind, first), timeline.span_bytes)
    np.add.at(change, (kind, last + 1), -timeline.span_bytes)
    live = np.cumsum(change[:, :-1], axis=1)
    live[KINDS.index("parameters")] = graph.resident_bytes
    live[KINDS.index("transient")] = 0
    live[KINDS.index("transient")] = timeline.live_bytes - live.sum(0)
    return Bands(live, _end_seconds(graph, timeline), start)


def _end_seconds(graph: Graph, timeline: Timeline) -> np.ndarray:
    """Steps share the timeline's cost as their nodes do; several kernels of one node in a row count once."""
    repeated = np.concatenate([[False], np.diff(timeline.schedule) == 0])
    elapsed = np.cumsum(np.where(repeated, 0.0, graph.costs[timeline.schedule]))
    return elapsed * (timeline.cost / elapsed[-1]) if elapsed[-1] else np.linspace(0.0, 1.0, elapsed.size)


def _turning_step(graph: Graph, steps: np.ndarray) -> int:
    """Where forward turns into backward: a compiler may run single kernels of one within the other.

    The least time is spent on backward nodes before it and on forward nodes that run for the first time after it.
    """
    first_run = np.zeros(steps.size, bool)
    first_run[np.unique(steps, return_index=True)[1]] = True
    backward = graph.backward[steps]
    costs = graph.costs[steps]
    backward_before = np.concatenate([[0.0], np.cumsum(costs * backward)])
    forward_before = np.concatenate([[0.0], np.cumsum(costs * (first_run & ~backward))])
    return int(np.argmin(backward_before + forward_before[-1] - forward_before))
