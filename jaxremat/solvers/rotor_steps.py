"""The steps of Rotor's recurrence: what each needs, and the operations that a sequence of them stands for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jaxremat.graph.graph import Chain

Operation = tuple[str, int]
"""(kind, stage from 1)."""


class RotorDecision(NamedTuple):
    """The first step of a plan for an interval.

    Attributes:
      saves: whether the first stage saves for its backward; otherwise the stages before `split` run forward only.
      split: first stage, from 0, of the rest of the interval.
      left: memory that is left for the rest.
    """

    saves: bool
    split: int
    left: int


def unfolded(decide: Callable[[int, int, int], RotorDecision], num_stages: int, memory: int) -> tuple[Operation, ...]:
    """The operations of the whole chain.

    Args:
      decide: (start, end, memory) -> the first step of the plan for stages start..end, from 0.
      num_stages: length of the chain.
      memory: what the whole chain may use.
    """
    operations: list[Operation] = []
    waiting: list[Operation | tuple[int, int, int]] = [(0, num_stages - 1, memory)]
    while waiting:
        item = waiting.pop()
        if isinstance(item[0], str):
            operations.append(item)
            continue
        start, end, left = item
        step = decide(start, end, left)
        if step.saves:
            operations.append(("forward_all", start + 1))
            waiting.append(("backward", start + 1))
            if start < end:
                waiting.append((step.split, end, step.left))
        else:
            operations.append(("forward_checkpoint", start + 1))
            operations += [("forward_none", stage + 1) for stage in range(start + 1, step.split)]
            waiting += [(start, step.split - 1, left), (step.split, end, step.left)]
    return tuple(operations)


class ChainSizes:
    """The sizes of a chain in quanta, rounded up, and the memory that each step of the recurrence needs.

    Stages count from 0 here, and `gradient_q[s]` is the gradient of the *input* of stage s.
    """

    def __init__(self, chain: Chain, quantum_bytes: int) -> None:
        def quanta(size_bytes: Any) -> Any:
            return -(-np.asarray(size_bytes, np.int64) // quantum_bytes)

        self.num_stages = chain.num_stages
        self.output_q = quanta(chain.output_bytes)
        self.gradient_q = quanta([chain.input_bytes, *chain.gradient_bytes])
        self.saved_q = quanta(chain.saved_bytes)
        self._forward_q = quanta(chain.forward_overhead_bytes)
        self._backward_q = quanta(chain.backward_overhead_bytes)
        input_q = np.concatenate([[0], self.output_q[:-1]])
        first = self.output_q + self._forward_q
        self._later_step_q = first + input_q
        self._first_step_q = first

    def forward_step_q(self, start: int, end: int) -> np.ndarray:
        """[end - start] for j = start + 1..end: the most that the fast forwards of start..j-1 hold."""
        steps = self._later_step_q[start:end].copy()
        steps[0] = self._first_step_q[start]
        return np.maximum.accumulate(steps)

    def saving_step_q(self, start: int, end: int) -> int:
        """What the saving forward and the backward of `start` hold, given the gradient of the output of `end`."""
        forward_q = self.gradient_q[end + 1] + self._forward_q[start]
        backward_q = self.gradient_q[start + 1] + self.gradient_q[start] + self._backward_q[start]
        return int(self.saved_q[start] + max(forward_q, backward_q))
