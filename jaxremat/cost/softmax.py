"""Softmaxes among the operations of a program: XLA:GPU runs the rows of one in one kernel.

A chain of diamonds, each from an array over the reduction of its rows and back to that array, becomes one kernel
(openxla/xla: `softmax_rewriter_triton.cc`). It ends early, at the exponentials, where someone else reads them or their
sums: then the exponentials are written, and whoever reads them reads a buffer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from jaxremat.cost.hlo_model import Program
from jaxremat.trace.primitives import ELEMENTWISE


@dataclasses.dataclass(frozen=True)
class RowKernel:
    """Operations that are one kernel, whatever saves time: the last one's result is written, the others' are not."""

    root: int
    inside: frozenset[int]


def row_kernels(program: Program, users: Sequence[Sequence[int]]) -> Iterator[RowKernel]:
    """The kernels that softmaxes become.

    Args:
      program: the operations.
      users: for each of them, those that read it.
    """
    finder = _Finder(program, users)
    for index, op in enumerate(program.ops):
        if op.kind == "exp" and users[index] and (kernel := finder.around(index)):
            yield kernel


class _Finder:
    def __init__(self, program: Program, users: Sequence[Sequence[int]]) -> None:
        self.ops, self.reads = program.ops, program.reads
        self.users, self.outputs = users, set(program.outputs)

    def around(self, exponentials: int) -> RowKernel | None:
        """The kernel that makes some exponentials, if it is more than they: from the maxima of rows to their shares."""
        shift = self.reads[exponentials][0]
        first = self._diamond(shift)
        readers = set(self.users[exponentials])
        if first is None or self.users[shift] != [exponentials] or len(readers) < 2:
            return None
        made = first | {shift}
        for shares in readers if exponentials not in self.outputs else ():
            second = self._diamond(shares)
            if second and readers <= second | {shares}:
                return self._followed(shares, made | second | {exponentials})
        return RowKernel(exponentials, made)

    def _followed(self, root: int, inside: frozenset[int]) -> RowKernel:
        """With conversions of the last result, while no one else reads it."""
        while len(self.users[root]) == 1 and self.ops[self.users[root][0]].kind == "convert_element_type":
            inside, root = inside | {root}, self.users[root][0]
        return RowKernel(root, inside)

    def _diamond(self, index: int) -> frozenset[int] | None:
        """What lies between an array and an operation on it and on the reductions of its rows, which no one else
        reads."""
        reads = self.reads[index]
        if self.ops[index].kind not in ELEMENTWISE or len(reads) != 2:
            return None
        for array, spread in (reads, reads[::-1]):
            path = self._to_rows(spread, index)
            while path and self.reads[path[-1]][0] != array and self._converts_for(path[-1]):
                path.append(self.reads[path[-1]][0])
            if path and self.reads[path[-1]][0] == array:
                return frozenset(path)
        return None

    def _to_rows(self, spread: int, reader: int) -> list[int]:
        """From a broadcast back to the reduction of rows that it comes from; empty where it does not."""
        path = [spread]
        if self.ops[spread].kind != "broadcast" or not self._is_read_by(spread, reader):
            return []
        while not self._reduces_rows(path[-1]):
            inputs = [read for read in self.reads[path[-1]] if self.ops[read].constant is None]
            if len(inputs) != 1 or not self._is_read_by(inputs[0], path[-1]):
                return []
            path.append(inputs[0])
        return path

    def _converts_for(self, reader: int) -> bool:
        """Whether what an operation reads is converted for it alone."""
        source = self.reads[reader][0]
        return self.ops[source].kind == "convert_element_type" and self._is_read_by(source, reader)

    def _is_read_by(self, index: int, reader: int) -> bool:
        return self.users[index] == [reader] and index not in self.outputs

    def _reduces_rows(self, index: int) -> bool:
        op = self.ops[index]
        return op.kind == "reduce" and self.ops[self.reads[index][0]].shape[:-1] == op.shape
