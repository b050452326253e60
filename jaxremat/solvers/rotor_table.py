"""Rotor's dynamic program as a table: the least time of every interval of stages at every memory.

C(s, t, m) is the least time to run stages s..t forward and backward in m quanta, given the input of s (held
elsewhere) and the gradient of the output of t (charged to m). With a, d the bytes of an output and of its gradient,
and A what a stage saves:

  C1 = min over s < j <= t of  fast forward of s..j-1  +  C(j, t, m - a[j-1])  +  C(s, j-1, m)
  C2 = forward + backward of s  +  C(s+1, t, m - A)
  C(s, s, m) = forward + backward of s, where they fit

C1 needs m >= d[t] + max(a[s] + o[s], a[k-1] + a[k] + o[k] for s < k < j): only the stages that run are charged. C2
needs m >= max(d[t] + A + forward overhead, d[s] + d[s-1] + A + backward overhead): the backward holds both gradients.

All sizes are rounded up to quanta and memory down, so a plan never needs more than its m. O(L^2 S) space and O(L^3 S)
time, in slabs that numpy adds and minimizes.
"""

from __future__ import annotations

import numpy as np

from jaxremat.graph.graph import Chain
from jaxremat.solvers.rotor_steps import ChainSizes, Operation, RotorDecision, unfolded

_LARGE_TABLE = 25_000_000  # entries; beyond, times are kept in single precision


class RotorTable:
    """C(s, t, m) for all intervals and all m in 0..slots.

    Args:
      chain: the chain.
      quantum_bytes: bytes per unit of m.
      slots: largest m.
    """

    def __init__(self, chain: Chain, quantum_bytes: int, slots: int) -> None:
        self.chain, self.quantum_bytes, self.slots = chain, quantum_bytes, slots
        self._sizes = ChainSizes(chain, quantum_bytes)
        length = chain.num_stages
        large = length * length * (slots + 1) > _LARGE_TABLE
        self._dtype = np.float32 if large else np.float64
        self._elapsed = np.concatenate([[0.0], np.cumsum(chain.forward_seconds)])
        # From start s: C(s, t, .) at row t - s. Towards end t: time to reach j and C(j, t, . - a[j-1]) at row j.
        self._from = [self._infinite(length - start) for start in range(length)]
        self._towards = [self._infinite(end + 1) for end in range(length)]
        self._finite_from = [np.full(length - start, slots + 1) for start in range(length)]
        self._finite_towards = [np.full(end + 1, slots + 1) for end in range(length)]
        self._sums = np.empty((length, slots + 1), self._dtype)
        for distance in range(length):
            for start in range(length - distance):
                self._fill(start, start + distance)

    @property
    def is_exact(self) -> bool:
        """Whether times are kept in double precision."""
        return self._dtype is np.float64

    def seconds(self, slot: int) -> float:
        """The least time of the whole chain in `slot` quanta; infinite where it does not fit."""
        return float(self._from[0][-1, slot])

    def distinct_slots(self) -> list[int]:
        """The smallest m of every distinct finite time of the whole chain, cheapest first."""
        whole = self._from[0][-1]
        changes = np.flatnonzero(whole[1:] != whole[:-1]) + 1
        candidates = np.unique(np.append(changes, 0))
        return [int(slot) for slot in candidates[::-1] if np.isfinite(whole[slot])]

    def operations(self, slot: int) -> tuple[Operation, ...]:
        """The operations of a fastest plan in `slot` quanta, stages from 1."""
        return unfolded(self._decision, self.chain.num_stages, slot)

    def _infinite(self, rows: int) -> np.ndarray:
        return np.full((rows, self.slots + 1), np.inf, self._dtype)

    def _fill(self, start: int, end: int) -> None:
        row = self._from[start][end - start]
        self._offer_saving(row, start, end)
        if end > start:
            np.minimum(row, self._checkpointing(start, end), out=row)
        finite = int(np.argmax(np.isfinite(row))) if np.isfinite(row[-1]) else self.slots + 1
        self._finite_from[start][end - start] = finite
        if start > 0:
            shift = int(self._sizes.output_q[start - 1])
            if shift <= self.slots:
                np.add(row[: row.size - shift], self._elapsed[start], out=self._towards[end][start, shift:])
            self._finite_towards[end][start] = min(finite + shift, self.slots + 1)

    def _offer_saving(self, row: np.ndarray, start: int, end: int) -> None:
        needed = self._sizes.saving_step_q(start, end)
        if needed > self.slots:
            return
        seconds = self._saving_seconds(start)
        if end == start:
            np.minimum(row[needed:], seconds, out=row[needed:])
        else:
            saved = int(self._sizes.saved_q[start])
            rest = self._from[start + 1][end - start - 1, needed - saved : row.size - saved]
            np.minimum(row[needed:], rest + self._dtype(seconds), out=row[needed:])

    def _saving_seconds(self, start: int) -> float:
        return float(self.chain.forward_seconds[start] + self.chain.backward_seconds[start])

    def _checkpointing(self, start: int, end: int) -> np.ndarray:
        """C1 at every m."""
        count = end - start
        sums = self._sums[:count]
        np.add(self._from[start][:count], self._towards[end][start + 1 :], out=sums)
        needed = self._sizes.forward_step_q(start, end) + self._sizes.gradient_q[end + 1]
        finite = np.maximum(self._finite_from[start][:count], self._finite_towards[end][start + 1 :])
        for row in np.flatnonzero((needed > finite) & (finite <= self.slots)):
            sums[row, : min(needed[row], self.slots + 1)] = np.inf
        best = sums.min(axis=0)
        best -= self._dtype(self._elapsed[start])
        return best

    def _decision(self, start: int, end: int, slot: int) -> RotorDecision:
        """What a fastest plan of an interval does first."""
        best, chosen = np.inf, None
        if slot >= self._sizes.saving_step_q(start, end):
            left = slot - int(self._sizes.saved_q[start])
            rest = 0.0 if start == end else float(self._from[start + 1][end - start - 1, left])
            best, chosen = self._saving_seconds(start) + rest, RotorDecision(True, start + 1, left)
        if end > start:
            count = end - start
            sums = self._from[start][:count, slot] + self._towards[end][start + 1 :, slot]
            needed = self._sizes.forward_step_q(start, end) + self._sizes.gradient_q[end + 1]
            sums = np.where(needed <= slot, sums, np.inf) - self._dtype(self._elapsed[start])
            row = int(np.argmin(sums))
            if sums[row] < best and not np.isclose(sums[row], best, rtol=1e-6 if sums.dtype == np.float32 else 1e-12):
                split = start + 1 + row
                chosen = RotorDecision(False, split, slot - int(self._sizes.output_q[split - 1]))
        assert chosen is not None, f"interval {start}..{end} has no plan in {slot} quanta"
        return chosen
