"""Normalisations among the operations of a program: XLA:GPU runs the rows of one in one kernel.

A diamond goes from an array over the reduction of its rows, spread again, back to an operation on it and the array: a
softmax is two of them, RMSNorm one. What lies on its edges reads nothing else that is large, and nobody else reads it.
A row has to fit in the registers of a block. (openxla/xla: `softmax_rewriter_triton.cc`;
`gpu_indexing_performance_model.cc` for the registers.)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from jaxremat.cost.hlo_builder import HloProgram
from jaxremat.trace.primitives import ELEMENTWISE

_LONGEST_ROW = 0.4 * 65536  # kFractionOfRegistersAvailableToStoreTile of registers_per_block_limit


@dataclasses.dataclass(frozen=True)
class Diamond:
    """The operation at which both ways meet, and the operations on the ways."""

    root: int
    inside: frozenset[int]


def diamonds(program: HloProgram, users: Sequence[Sequence[int]]) -> Iterator[Diamond]:
    """The diamonds of a program, in its order.

    Args:
      program: the operations.
      users: for each of them, those that read it.
    """
    finder = _Finder(program, users)
    for index, (op, reads) in enumerate(zip(program.ops, program.reads)):
        if len(reads) == 2 and len(users[reads[1]]) == 1 and op.kind in ELEMENTWISE and (inside := finder.ways(index)):
            yield Diamond(index, inside)


class _Finder:
    def __init__(self, program: HloProgram, users: Sequence[Sequence[int]]) -> None:
        self.ops, self.reads = program.ops, program.reads
        self.users, self.outputs = users, set(program.outputs)

    def ways(self, root: int) -> frozenset[int] | None:
        """What lies on both ways to an operation; None where it closes no diamond."""
        array, spread = self.reads[root]
        back = self._up_to(spread, "broadcast")
        sums = self._up_to(self.reads[back[-1]][0], "reduce") if back and self.reads[back[-1]] else []
        if not sums or not self._reduces_rows(sums[-1]) or not self._all_alone((*back, *sums)):
            return None
        summed = self._edge(self.reads[sums[-1]][0])
        source = self._next(summed[-1]) if summed else self.reads[sums[-1]][0]
        straight = self._edge(array, until=source)
        reached = self._next(straight[-1]) if straight else array
        return frozenset((*back, *sums, *summed, *straight)) if reached == source else None

    def _up_to(self, index: int, kind: str) -> list[int]:
        """From an operation to the first of a kind before it; empty where something else is on the way."""
        way = [index]
        while self.ops[way[-1]].kind != kind:
            if not self._is_trivial(way[-1]):
                return []
            way.append(self._next(way[-1]))
        return way

    def _edge(self, index: int, until: int = -1) -> list[int]:
        """From an operation back over all that is trivial, or to one of them."""
        way = []
        while index != until and self._is_trivial(index):
            way.append(index)
            index = self._next(index)
        return way

    def _is_trivial(self, index: int) -> bool:
        """Whether an operation reads one array, beside constants and rows, and is read once (IsTriviallyFusible)."""
        if self.ops[index].kind not in ELEMENTWISE or not self._all_alone((index,)):
            return False
        return len({read for read in self.reads[index] if not self._is_splat(read)}) == 1

    def _next(self, index: int) -> int:
        return next(read for read in self.reads[index] if not self._is_splat(read))

    def _is_splat(self, index: int) -> bool:
        """Whether a value is a constant, or an input that is spread (IsBroadcastOfScalarConstant, -OfParameter)."""
        op = self.ops[index]
        sources = self.reads[index]
        return op.kind == "broadcast" and (not sources or self.ops[sources[0]].kind == "input")

    def _all_alone(self, indices: Sequence[int]) -> bool:
        return all(len(self.users[index]) == 1 and index not in self.outputs for index in indices)

    def _reduces_rows(self, index: int) -> bool:
        rows = self.ops[self.reads[index][0]]
        if not rows.elements or rows.shape[:-1] != self.ops[index].shape:
            return False
        return 1 << (rows.shape[-1] - 1).bit_length() <= _LONGEST_ROW
