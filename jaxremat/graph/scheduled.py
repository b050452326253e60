"""A scheduled program: a schedule with all that running it takes.

It is made once, where the schedule is made, and carried through prediction, decision, file, emission and display: what
is saved, where the backward begins and where barriers stand is never worked out a second time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from jaxremat.base.shapes import Bool, Int32

BARRIER_SCOPES = ("all", "sources", "order")


class Wiring(Protocol):
    """Who reads what, of a `Graph` or of a joint program."""

    @property
    def backward(self) -> np.ndarray: ...
    @property
    def producer(self) -> np.ndarray: ...
    @property
    def reads(self) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True, eq=False)
class ScheduledProgram:
    """A schedule in two parts, forward and backward.

    Attributes:
      steps: node ids in execution order; repeats are recomputations.
      backward_start: the step at which the backward begins; the number of steps where there is none.
      barriers: steps of the backward at which a stretch behind an optimization barrier opens, ascending.
      barrier_scope: what enters through a barrier: "all" that its stretch reads from outside; or only the "sources" of
        what it recomputes, with the cotangents it reads, which suits programs so small that buffers cost more than
        order; or as "all" in strict "order": what a stretch made for later ones passes the next barrier, too.
      saved: values that the forward leaves for the backward, ascending; inputs of the program are not among them.
    """

    steps: Int32[np.ndarray, " steps"]
    backward_start: int
    barriers: tuple[int, ...]
    barrier_scope: str
    saved: Int32[np.ndarray, " saved"]

    @property
    def is_in_order(self) -> bool:
        """Whether everything runs once, in the given order."""
        return np.array_equal(self.steps, np.arange(self.steps.size))

    def is_saved(self, num_values: int) -> Bool[np.ndarray, " values"]:
        """For each value of the program, whether the forward leaves it for the backward."""
        saved = np.zeros(num_values, bool)
        saved[self.saved] = True
        return saved

    def to_json(self) -> dict[str, Any]:
        return {
            "steps": self.steps.tolist(),
            "backward_start": self.backward_start,
            "barriers": list(self.barriers),
            "barrier_scope": self.barrier_scope,
            "saved": self.saved.tolist(),
        }

    @staticmethod
    def from_json(data: dict[str, Any]) -> ScheduledProgram:
        return ScheduledProgram(
            steps=np.asarray(data["steps"], np.int32),
            backward_start=int(data["backward_start"]),
            barriers=tuple(data["barriers"]),
            barrier_scope=str(data["barrier_scope"]),
            saved=np.asarray(data["saved"], np.int32),
        )


def schedule_program(
    wiring: Wiring,
    steps: Sequence[int] | np.ndarray,
    *,
    backward_start: int | None = None,
    barriers: Sequence[int] | None = None,
    barrier_scope: str = "all",
) -> ScheduledProgram:
    """The record of a schedule.

    Args:
      wiring: a graph, or the wiring of a joint program.
      steps: [T] node ids in execution order.
      backward_start: by default, the first backward step, or the repeats right before it: they belong to the backward.
      barriers: by default, wherever a recomputation follows a backward step.
      barrier_scope: one of `BARRIER_SCOPES`.
    """
    steps = np.asarray(steps, np.int32).reshape(-1)
    start = _backward_start(wiring.backward, steps) if backward_start is None else backward_start
    if barriers is None:
        late = wiring.backward[steps]
        barriers = [t for t in range(start + 1, steps.size) if late[t - 1] and not late[t]]
    return ScheduledProgram(steps, start, tuple(barriers), barrier_scope, saved_before(wiring, steps[start:]))


def in_order(wiring: Wiring) -> ScheduledProgram:
    """The program as it stands: everything runs once, in the given order."""
    return schedule_program(wiring, np.arange(wiring.backward.size), barriers=())


def first_backward(is_backward: np.ndarray, steps: np.ndarray) -> int:
    """The first step that runs a backward node; the number of steps where none does."""
    late = is_backward[steps]
    return int(late.argmax()) if late.any() else steps.size


def _backward_start(is_backward: np.ndarray, steps: np.ndarray) -> int:
    start = first_backward(is_backward, steps)
    before = np.flatnonzero(first_runs(steps)[:start])
    return int(before[-1]) + 1 if before.size else 0


def first_runs(steps: np.ndarray) -> np.ndarray:
    """[T] bool: steps at which their node runs for the first time."""
    return _first_steps(steps, int(steps.max(initial=-1)) + 1)[steps] == np.arange(steps.size)


def _first_steps(steps: np.ndarray, num_nodes: int) -> np.ndarray:
    """[N] the step at which each node runs for the first time; the number of steps where it never does."""
    first = np.full(num_nodes, steps.size)
    first[steps[::-1]] = np.arange(steps.size)[::-1]  # of several places, the last that is written counts
    return first


def saved_before(wiring: Wiring, tail: np.ndarray) -> np.ndarray:
    """[K] values that a stretch running to the end reads before it makes them."""
    first = _first_steps(tail, wiring.backward.size)
    value, reader = wiring.reads.T
    is_saved = np.zeros(wiring.producer.size, bool)
    is_saved[value[first[reader] < first[wiring.producer[value]]]] = True
    return np.flatnonzero(is_saved).astype(np.int32)
