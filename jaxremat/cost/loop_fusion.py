"""XLA's instruction fusion, replayed on a program.

The rules are those of XLA (read in openxla/xla: `library_rewriter.cc`, `ynn_support.cc`, `cpu_instruction_fusion.cc`,
`instruction_fusion.cc`) and hold no fitted constant:

- On a CPU, contractions and convolutions are handed to a library one by one, and reductions, and windows side by side,
  with their neighbours: a *library group* takes a producer that only it reads, and follows its root while one reader is
  left. What a group reads must be a buffer, even a broadcast.
- A producer then joins every fused loop that reads it. Cheap producers with at most one operand of their own size are
  repeated freely. Those with two are repeated only if every reader can take them. Expensive ones are never repeated.
- Contractions, convolutions, scatters, sorts, other windows, loops and barriers read and write buffers.
"""

from __future__ import annotations

import collections
import heapq
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxremat.backends.backend import Backend
from jaxremat.cost.fused import Fusion, reachable, readers_of
from jaxremat.cost.hlo_builder import HloProgram
from jaxremat.cost.hlo_products import FLOATS
from jaxremat.trace.primitives import ELEMENTWISE, EXACT, EXPENSIVE, IN_LIBRARY, MOVING

_LIBRARY_SUMS = ("reduce", "reduce_window")
_LIBRARY_STARTERS = ("dot", "conv", *_LIBRARY_SUMS)
_LIBRARY_ALONE = ("dot", "conv")  # as starters; a group around a reduction takes them all the same
_LIBRARY_MIN_ELEMENTS = 4096  # ynn_support.cc; test_cpu_rules holds it to compiled programs
_MOST_PARTS, _LONG_ROWS = 8, 2048  # of a concatenation that is fused, and bytes; as compiled: test_cpu_rules
_LIBRARY_MAX_OPS = 100  # kMaxFusionSize in library_fusion_kinds.h
_MOST_TIMES = 15  # kAllowedCodeDuplication
_IN_BLOCKS = frozenset({"concatenate", "dynamic_update_slice", "pad", "reduce"})
"""What makes a block of its own in a loop's code, so that nothing is used again (`OpInvalidatesCache`)."""
_LOOP = -1  # the index of the loop itself, beside operations that compute an index


def fuse_by_rule(program: HloProgram, backend: Backend) -> Fusion:
    """Decides which operations of a program write buffers, as XLA's instruction fusion does."""
    return _Fuser(program, backend).run()


class _Fuser:
    def __init__(self, program: HloProgram, backend: Backend) -> None:
        self.program, self.ops, self.reads, self.backend = program, program.ops, program.reads, backend
        self.outputs = set(program.outputs)
        self.expensive = [_is_expensive(program, index, backend) for index in range(len(self.ops))]
        self.live = reachable(program)
        self.users = readers_of(program, self.live)
        self.group: dict[int, int] = {}
        self.members: dict[int, list[int]] = {}

    def run(self) -> Fusion:
        if self.backend.library_groups:
            for index in reversed(self.live):
                if self.ops[index].kind in _LIBRARY_STARTERS and index not in self.group and self._library(index):
                    self._grow_group(index)
        self.shared = self._not_repeated()
        return self._fuse_loops()

    def _grow_group(self, start: int) -> None:
        group, root, grew = [start], start, self.ops[start].kind not in _LIBRARY_ALONE
        self.group[start] = start
        while grew:
            grew = False
            seen = set(group)
            queue = collections.deque(self._neighbours([r for m in group for r in self.reads[m]], root, group))
            while queue and len(group) < _LIBRARY_MAX_OPS:
                index, upwards = queue.popleft()
                if index in seen or index in self.group or not self._library(index):
                    continue
                seen.add(index)
                group.append(index)
                self.group[index] = start
                grew = True
                if upwards:
                    queue.extend(n for n in self._neighbours(self.reads[index], root, group) if n[1])
                else:
                    root = index
                    queue.extend(n for n in self._neighbours((), root, group) if not n[1])
        self.members[root] = group
        self.group.update(dict.fromkeys(group, root))

    def _neighbours(self, reads: Any, root: int, group: list[int]) -> list[tuple[int, bool]]:
        """Producers that only this group reads, and the only reader of its root: pairs (operation, upwards)."""
        found = [
            (read, True)
            for read in dict.fromkeys(reads)
            if self.ops[read].kind != "input"
            and read not in self.outputs
            and all(user in group for user in self.users[read])
        ]
        if root not in self.outputs and len(self.users[root]) == 1:
            found.append((self.users[root][0], False))
        return found

    def _library(self, index: int) -> bool:
        op = self.ops[index]
        if op.kind in ("dot", "conv"):
            return op.in_library
        if op.kind == "broadcast":
            return op.dtype in FLOATS
        sizes = [op.elements, *(self.ops[r].elements for r in self.reads[index])]
        floats = all(o.dtype in FLOATS for o in (op, *(self.ops[r] for r in self.reads[index])))
        if max(sizes) < _LIBRARY_MIN_ELEMENTS or not floats:
            return False
        return op.in_library if op.kind in _LIBRARY_SUMS else op.kind in IN_LIBRARY

    def _fusible(self, index: int) -> bool:
        kind = self.ops[index].kind
        return index not in self.group and (kind in ELEMENTWISE or kind in MOVING or kind == "reduce")

    def _joins(self, producer: int, consumer: int) -> bool:
        """Whether a producer can run inside a consumer's loop."""
        if not (self._fusible(producer) and self._fusible(consumer)):
            return False
        first, second = self.ops[producer], self.ops[consumer]
        if second.kind == "concatenate" or first.kind == "concatenate":
            return not (self._stays_alone(producer) or self._stays_alone(consumer))
        reuses = second.kind in ("broadcast", "gather") and second.elements > first.elements
        return not (reuses and self.expensive[producer])

    def _stays_alone(self, index: int) -> bool:
        """A concatenation that XLA runs on its own: many parts, or long rows along the last dimension."""
        op = self.ops[index]
        return op.splits_rows and (len(self.reads[index]) > _MOST_PARTS or op.size_bytes >= _LONG_ROWS)

    def _not_repeated(self) -> set[int]:
        """Cheap producers with two operands of their own size that some reader cannot take, directly or on the way."""
        ancestors: dict[int, int] = {}
        for index in self.live:
            mask = 1 << index
            for read in self.reads[index]:
                mask |= ancestors[read]
            ancestors[index] = mask
        shared: set[int] = set()

        def all_paths_join(producer: int, consumer: int, known: dict[int, bool]) -> bool:
            if consumer not in known:
                known[consumer] = consumer == producer or all(
                    read not in shared and self._joins(read, consumer) and all_paths_join(producer, read, known)
                    for read in self.reads[consumer]
                    if read >= producer and ancestors[read] >> producer & 1
                )
            return known[consumer]

        for consumer in self.live:
            for producer in set(self.reads[consumer]):
                op = self.ops[producer]
                several = len(self.users[producer]) + (producer in self.outputs) > 1
                if producer in shared or op.kind == "input" or not several or self.expensive[producer]:
                    continue
                if not self._reads_one(producer) and not all_paths_join(producer, consumer, {}):
                    shared.add(producer)
        return shared

    def _reads_one(self, index: int) -> bool:
        op = self.ops[index]
        full = [r for r in self.reads[index] if self.ops[r].elements >= op.elements > 1]
        return sum(self.ops[r].kind not in ("broadcast", "iota") for r in full) <= 1

    def _fuse_loops(self) -> Fusion:
        is_kernel = np.zeros(len(self.ops), bool)
        is_kernel[list(self.outputs)] = True
        buffers_read: dict[int, dict[int, float]] = {}
        loops: dict[int, frozenset[int]] = {}
        for index in reversed(self.live):
            if self.ops[index].kind == "input" or self.group.get(index, index) != index:
                continue
            if index in self.members:
                inside: set[int] = set(self.members[index])
                outside = {r for m in inside for r in self.reads[m] if r not in inside}
            elif is_kernel[index] or not self._fusible(index):
                inside, outside = self._absorb(index)
                loops[index] = frozenset(inside)
            else:
                continue
            is_kernel[index] = True
            is_kernel[list(outside)] = True
            buffers_read[index] = dict.fromkeys(outside, 1.0)
        kernels = tuple(i for i in self.live if i in buffers_read)
        groups = {root: frozenset(members) for root, members in self.members.items()}
        return Fusion(self.program, kernels, buffers_read, loops, self.users, groups)

    def _absorb(self, root: int) -> tuple[set[int], set[int]]:
        """The operations that one kernel runs, and the buffers that it reads."""
        inside, moved, outside = {root}, {root}, set()
        heap = [-read for read in set(self.reads[root])]
        heapq.heapify(heap)
        seen, written_out = set(heap), _WrittenOut(self.program, root)
        while heap:
            index = -heapq.heappop(heap)
            op, users = self.ops[index], self.users[index]
            only_here = index not in self.outputs and all(user in moved for user in users)
            repeatable = not self.expensive[index] and index not in self.shared
            joins = all(self._joins(index, user) for user in users if user in inside)
            too_often = len(inside) > 1 and written_out.too_often(index, users)
            if op.kind == "input" or not joins or too_often or not (only_here or repeatable):
                outside.add(index)
                continue
            inside.add(index)
            written_out.add(index)
            if only_here:
                moved.add(index)
            for read in self.reads[index]:
                if -read not in seen:
                    seen.add(-read)
                    heapq.heappush(heap, -read)
        return inside, outside


class _WrittenOut:
    """How often the code of a loop writes out each operation: once for every index at which it is read
    (`fusion_node_indexing_evaluation.cc`)."""

    def __init__(self, program: HloProgram, root: int) -> None:
        self._ops, self._reads = program.ops, program.reads
        self._indices: dict[int, set[int]] = collections.defaultdict(set)
        self._indices[root].add(_LOOP)
        self._times = {_LOOP: 1}
        self.add(root)

    def add(self, index: int) -> None:
        """Lets the loop run an operation that it read."""
        self._times[index] = self._written(index)
        op = self._ops[index]
        for read in self._reads[index]:
            same = op.kind == "transpose" or self._ops[read].shape == op.shape
            self._indices[read] |= self._indices[index] if same else {index}

    def too_often(self, index: int, users: Sequence[int]) -> bool:
        """Whether an operation that the loop reads would be written out too often; broadcasts never are."""
        kind, times = self._ops[index].kind, self._written(index)
        if kind == "broadcast":
            return False
        return times > _MOST_TIMES or (kind in _IN_BLOCKS and (times > 1 or len(users) > 1))

    def _written(self, index: int) -> int:
        return sum(self._times[reader] for reader in self._indices[index])


def _is_expensive(program: HloProgram, index: int, backend: Backend) -> bool:
    op = program.ops[index]
    if op.kind == "convert_element_type":
        return op.dtype == "bfloat16" and program.ops[program.reads[index][0]].dtype == "float32"
    if op.dtype in backend.rounded_results and op.kind in ELEMENTWISE - EXACT:
        return True
    return op.kind in EXPENSIVE or op.kind in ("reduce", "gather")
