"""A program after fusion: which of its operations write buffers, and what each kernel runs and reads."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from jaxremat.cost.hlo_builder import HloProgram
from jaxremat.cost.hlo_ops import CONTRACTIONS, Op
from jaxremat.trace.primitives import ELEMENTWISE

_SAME_PLACE = ELEMENTWISE | {"bitcast"}


@dataclasses.dataclass(frozen=True, eq=False)
class Fusion:
    """The fused program.

    Attributes:
      program: the operations.
      kernels: operations whose results are buffers, in the order in which they run; each is the root of one kernel.
      buffers_read: the buffers (kernels and inputs) that each kernel reads, and how much of each: less than 1 of what
        is sliced, nothing of what is updated in place, more than 1 where parts are read several times.
      loops: the operations of each kernel that is a fused loop.
      users: for each operation, those that read it.
      groups: the operations of each kernel of a library that is more than one.
      custom: kernels that are compiled apart from loops: products of matrices, and what runs by rows.
    """

    program: HloProgram
    kernels: tuple[int, ...]
    buffers_read: dict[int, dict[int, float]]
    loops: dict[int, frozenset[int]]
    users: list[list[int]]
    groups: Mapping[int, frozenset[int]] = dataclasses.field(default_factory=dict)
    custom: frozenset[int] = frozenset()

    def written_bytes(self, kernel: int) -> int:
        """What a kernel writes: of what is updated in place, the update."""
        return written_bytes(self.program, kernel)

    def runs(self, kernel: int) -> frozenset[int]:
        """The operations that a kernel runs."""
        return self.loops.get(kernel) or self.groups.get(kernel, frozenset((kernel,)))

    @functools.cached_property
    def products(self) -> dict[int, frozenset[int]]:
        """Of the kernels that run products or convolutions, these."""
        return self._running(frozenset(index for index, op in enumerate(self.program.ops) if op.kind in CONTRACTIONS))

    @functools.cached_property
    def by_library(self) -> dict[int, str]:
        """Of the kernels that run a library's products, what those are: "dot" or "conv"."""
        ops = self.program.ops
        return {
            kernel: ops[product].kind
            for kernel, products in self.products.items()
            for product in products
            if ops[product].in_library
        }

    @functools.cached_property
    def reductions(self) -> dict[int, frozenset[int]]:
        """Of the kernels that reduce, the operations that do."""
        return self._running(frozenset(index for index, op in enumerate(self.program.ops) if op.kind == "reduce"))

    def _running(self, wanted: frozenset[int]) -> dict[int, frozenset[int]]:
        runs = ((kernel, self.runs(kernel)) for kernel in self.kernels)
        return {kernel: wanted & inside for kernel, inside in runs if not wanted.isdisjoint(inside)}

    def is_elementwise(self, kernel: int) -> bool:
        """Whether a kernel computes each entry of its result from entries in the same place, or from constants."""
        ops, reads = self.program.ops, self.program.reads
        return all(ops[inside].kind in _SAME_PLACE or not reads[inside] for inside in self.runs(kernel))

    def is_elementwise_on(self, kernel: int, buffer: int) -> bool:
        """Whether a kernel reads each entry of a buffer only for the entry of its result in the same place."""
        inside, seen = self.runs(kernel), {buffer}
        stack = [buffer]
        while stack:
            for user in self.users[stack.pop()]:
                if user in inside and user not in seen:
                    if self.program.ops[user].kind not in _SAME_PLACE:
                        return False
                    seen.add(user)
                    stack.append(user)
        return kernel in seen


class Merged(NamedTuple):
    """A kernel that is left of some, all in numbers of their own.

    Attributes:
      root: the one that is left.
      members: those that it runs, itself included.
      reads: how much it reads of each buffer.
      padding: as in `Kernel`.
    """

    root: int
    members: Sequence[int]
    reads: Mapping[int, float]
    padding: float


def written_bytes(program: HloProgram, index: int) -> int:
    """What an operation writes, were it a kernel: of what is updated in place, the update."""
    op = program.ops[index]
    if op.kind == "dynamic_update_slice":
        return program.ops[program.reads[index][1]].size_bytes
    return op.size_bytes + op.unread_bytes


def share_read(op: Op, read: Op) -> float:
    """How much of what it reads an operation reads that reads entries more or less than once."""
    return op.window * op.elements / max(read.elements, 1)


def reachable(program: HloProgram) -> list[int]:
    """Operations that an output, or a loop or effect on the way, needs; in program order."""
    needed = bytearray(len(program.ops))
    for output in program.outputs:
        needed[output] = True
    for index in range(len(needed) - 1, -1, -1):
        if needed[index]:
            for read in program.reads[index]:
                needed[read] = True
    return [index for index, is_needed in enumerate(needed) if is_needed]


def readers_of(program: HloProgram, live: Sequence[int]) -> list[list[int]]:
    """For each operation, those of some that read it; in program order."""
    readers: list[list[int]] = [[] for _ in program.ops]
    for index in live:
        reads = program.reads[index]
        for read in reads if len(reads) < 2 else set(reads):
            readers[read].append(index)
    return readers


def value_of(fusion: Fusion, kernel: int) -> int:
    """The kernel that wrote what is read under the name of another one: behind barriers and in other shapes."""
    while (named := other_name(fusion, kernel)) is not None:
        kernel = named
    return kernel


def other_name(fusion: Fusion, kernel: int) -> int | None:
    """Of what a result is but another name: what passed a barrier, or the same entries in another shape."""
    if fusion.program.ops[kernel].kind == "fenced":
        return fusion.program.reads[kernel][1]
    return fusion.program.reads[kernel][0] if _is_reshaped(fusion, kernel) else None


def shaped_from(fusion: Fusion, kernel: int) -> int:
    """The buffer of which another one is the same entries in another shape."""
    while _is_reshaped(fusion, kernel):
        kernel = fusion.program.reads[kernel][0]
    return kernel


def _is_reshaped(fusion: Fusion, kernel: int) -> bool:
    program = fusion.program
    is_bitcast = program.ops[kernel].kind == "bitcast"
    return is_bitcast and fusion.buffers_read.get(kernel, {}).keys() == set(program.reads[kernel])
