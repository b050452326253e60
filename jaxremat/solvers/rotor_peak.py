"""The smallest memory in which a chain can run: Rotor's recurrence with memory in place of time.

P(s, t) is the least memory of stages s..t, given the input of s (held elsewhere) and the gradient of the output of t:
the least m for which C(s, t, m) of `rotor_table` is finite. Exact in bytes; O(L^3) time, O(L^2) space.
"""

from __future__ import annotations

import numpy as np

from jaxremat.graph.graph import Chain
from jaxremat.solvers.rotor_steps import ChainSizes, Operation, RotorDecision, unfolded


class PeakTable:
    """P(s, t) for all intervals of a chain."""

    def __init__(self, chain: Chain) -> None:
        self.chain = chain
        self._sizes = ChainSizes(chain, 1)
        length = chain.num_stages
        # From start s: P(s, t) at t - s. Towards end t: a[j-1] + P(j, t) at j.
        self._from = [np.zeros(length - start, np.int64) for start in range(length)]
        self._towards = [np.zeros(end + 1, np.int64) for end in range(length)]
        for distance in range(length):
            for start in range(length - distance):
                self._fill(start, start + distance)

    @property
    def peak_bytes(self) -> int:
        """The smallest peak of the whole chain, its input included."""
        return int(self._from[0][-1]) + self.chain.input_bytes

    def operations(self) -> tuple[Operation, ...]:
        """The operations of a plan with the smallest peak."""
        return unfolded(self._decision, self.chain.num_stages, 0)

    def _fill(self, start: int, end: int) -> None:
        best = self._saving(start, end)
        if end > start:
            best = min(best, int(self._checkpointing(start, end).min()))
        self._from[start][end - start] = best
        if start > 0:
            self._towards[end][start] = best + self._sizes.output_q[start - 1]

    def _saving(self, start: int, end: int) -> int:
        rest = int(self._from[start + 1][end - start - 1]) if end > start else 0
        return max(self._sizes.saving_step_q(start, end), int(self._sizes.saved_q[start]) + rest)

    def _checkpointing(self, start: int, end: int) -> np.ndarray:
        needed = self._sizes.forward_step_q(start, end) + self._sizes.gradient_q[end + 1]
        parts = np.maximum(self._from[start][: end - start], self._towards[end][start + 1 :])
        return np.maximum(parts, needed)

    def _decision(self, start: int, end: int, memory: int) -> RotorDecision:
        least = int(self._from[start][end - start])
        if self._saving(start, end) == least:
            return RotorDecision(True, start + 1, memory)
        return RotorDecision(False, start + 1 + int(np.argmin(self._checkpointing(start, end))), memory)
