"""Which kernels a GPU runs as one.

Loops and reductions over the same elements that read the same buffer, or one the other's result, run as one kernel;
for the sake of what a product or a kernel by rows makes, only transposes do. What is made last is looked at first: its
readers join each other, and then what makes it joins some of them. A reduction in few blocks computes nothing that is
written, too (openxla/xla: `multi_output_fusion.cc`). An update in place is a kernel of its own.

Rows that several kernels spread come last, where XLA goes by place alone: it leaves the sign of a sum to a reader more
often than is known here. (A transformer of three blocks, H200: 320 MiB were predicted for a plan that takes 360.)
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Iterable

from jaxremat.backends.devices import Device
from jaxremat.cost.fused import Fusion, shaped_from
from jaxremat.cost.reductions import blocks
from jaxremat.trace.primitives import ELEMENTWISE, MOVING

_LOOPS = (ELEMENTWISE | MOVING | {"reduce"}) - {"dynamic_update_slice", "bitcast"}


def run_as_one(fusion: Fusion, device: Device) -> list[tuple[int, ...]]:
    """All kernels, those together that run as one."""
    if not device.backend.element_work:
        return [(kernel,) for kernel in fusion.kernels]
    joins = _Joins(fusion, device)
    ops = fusion.program.ops
    for buffer in sorted(joins.readers, key=lambda buffer: (ops[buffer].elements, buffer), reverse=True):
        joins.join_around(buffer)
    groups: dict[int, list[int]] = collections.defaultdict(list)
    for kernel in fusion.kernels:
        groups[joins.leader(kernel)].append(kernel)
    return [tuple(group) for group in groups.values()]


def _reads_slowly(fusion: Fusion, reductions: Iterable[int], device: Device) -> bool:
    """Whether a kernel reduces in so few blocks that they read less than memory gives."""
    ops, reads = fusion.program.ops, fusion.program.reads
    at_once = min(blocks(ops[index], ops[reads[index][0]]) for index in reductions)
    return at_once * device.core_bytes_per_second < device.bandwidth_bytes_per_second


def _loop_elements(fusion: Fusion, kernel: int) -> int:
    """How many elements a kernel's loop goes through: those of its result, or of what it reduces."""
    ops, reads = fusion.program.ops, fusion.program.reads
    reduced = (ops[reads[index][0]].elements for index in fusion.reductions.get(kernel, ()))
    return max([ops[kernel].elements, *reduced])


def _is_fused(fusion: Fusion, kernel: int) -> bool:
    """Whether a kernel is more than one operation for XLA: sums run with what they begin with, and what is turned with
    another shape of it."""
    makes_some = not fusion.buffers_read[kernel].keys() >= {*fusion.program.reads[kernel]}
    return fusion.program.ops[kernel].kind in ("reduce", "transpose") or makes_some


class _Joins:
    """Kernels on their way to be joined.

    Attributes:
      readers: of each buffer of more than one entry, those that may be joined for its sake.
    """

    def __init__(self, fusion: Fusion, device: Device) -> None:
        ops, self._reads = fusion.program.ops, fusion.buffers_read
        self._ops = ops
        loops = [kernel for kernel in fusion.kernels if ops[kernel].kind in _LOOPS and kernel not in fusion.custom]
        self._is_loop = dict.fromkeys(kernel for kernel in loops if kernel not in fusion.products)
        self._sums = fusion.reductions
        self._fused = {kernel for kernel in loops if _is_fused(fusion, kernel)}
        self._elements = {kernel: _loop_elements(fusion, kernel) for kernel in self._is_loop}
        self.readers: dict[int, list[int]] = collections.defaultdict(list)
        self._shaped = {
            kernel: {shaped_from(fusion, buffer) for buffer in fusion.buffers_read[kernel]} for kernel in self._is_loop
        }
        for kernel, shaped in self._shaped.items():
            for buffer in shaped if ops[kernel].kind == "transpose" else shaped - fusion.custom:
                if ops[buffer].elements > 1:
                    self.readers[buffer].append(kernel)
        self._reads_slowly = {kernel for kernel, found in self._sums.items() if _reads_slowly(fusion, found, device)}
        self._reduced = {kernel: {ops[kernel].shape} if kernel in self._sums else set() for kernel in self._is_loop}
        self._leader = {kernel: kernel for kernel in fusion.kernels}
        self._members = {kernel: [kernel] for kernel in fusion.kernels}
        self._bits: dict[int, int] = {}  # of a group's kernels, one for each
        self._waits_for: dict[int, int] = {}  # bits of all kernels that must have run before, had none been joined
        self._joined: set[int] = set()  # leaders of several kernels, which wait for all that must have run before
        for k, kernel in enumerate(fusion.kernels):
            self._bits[kernel] = 1 << k
            self._waits_for[kernel] = self._before(fusion.buffers_read[kernel])

    def leader(self, kernel: int) -> int:
        while self._leader[kernel] != kernel:
            kernel = self._leader[kernel]
        return kernel

    def join_around(self, buffer: int) -> None:
        """Joins those that read a buffer with each other, and then what makes it with one of them."""
        for first, second in itertools.combinations(self._readers_of(buffer), 2):
            self._join_siblings(buffer, first, second)
        if buffer in self._is_loop and not self._ops[buffer].turns_rows:
            any(self._join_producer(buffer, reader) for reader in self._readers_of(buffer))

    def _readers_of(self, buffer: int) -> list[int]:
        """Those that read a buffer: kernels that run as one with others, then of several operations, then of one."""
        return sorted(self.readers[buffer], key=lambda reader: (self._is_alone(reader), reader not in self._fused))

    def _is_alone(self, kernel: int) -> bool:
        return len(self._members[self.leader(kernel)]) == 1

    def _is_whole(self, buffer: int, reader: int) -> bool:
        """Whether a kernel goes once through what it reads, and does not spread it."""
        return self._ops[buffer].elements == self._elements[reader]

    def _join_siblings(self, buffer: int, first: int, second: int) -> None:
        """Joins two kernels that read a buffer, if none of them waits for the other, and not both are one operation;
        where they spread it, one may be a sum, with which nothing more is done."""
        is_one_operation = self._is_alone(first) and first not in self._fused
        if is_one_operation or not (self._is_whole(buffer, first) or self._is_one_sum_at_most(first, second)):
            return
        a, b = self.leader(first), self.leader(second)
        if not self._are_alike(a, b):
            return
        if not (self._all_before(a) & self._bits[b] or self._all_before(b) & self._bits[a]):
            self._join(a, b)

    def _is_one_sum_at_most(self, first: int, second: int) -> bool:
        sums = [kernel for kernel in (first, second) if self._reduced[kernel]]
        return len(sums) < 2 and all(self._ops[kernel].kind == "reduce" for kernel in sums)

    def _join_producer(self, buffer: int, reader: int) -> bool:
        """Joins a kernel with one that reads its result, if that waits for it only to read it. Loops that read it
        several times compute it once; where sums or transposes among them go through it in another order, it is written
        before."""
        a, b = self.leader(buffer), self.leader(reader)
        is_quick = self._is_whole(buffer, reader) and self._reads_slowly.isdisjoint(self._members[b])
        if not is_quick or not self._are_alike(a, b) or self._goes_several_ways(b, buffer):
            return False
        own = {*self._members[a], *self._members[b]}
        others = (read for kernel in self._members[b] for read in self._reads[kernel] if read not in own)
        if self._all_before(a) & self._bits[b] or self._before(others) & self._bits[a]:
            return False
        self._join(a, b)
        return True

    def _goes_several_ways(self, group: int, buffer: int) -> bool:
        """Whether a group would compute a buffer several times: for a loop among sums, and for several readers with a
        transpose among them."""
        reading = {kernel for kernel in self._members[group] if buffer in self._shaped[kernel]}
        if self._reduced[group]:
            return not self._sums.keys() >= reading
        return len(reading) > 1 and any(self._ops[kernel].kind == "transpose" for kernel in self._members[group])

    def _are_alike(self, a: int, b: int) -> bool:
        """Whether two groups go through as many elements, and their reductions, if any, are alike."""
        return a != b and self._elements[a] == self._elements[b] and len(self._reduced[a] | self._reduced[b]) <= 1

    def _before(self, buffers: Iterable[int]) -> int:
        """Bits of the kernels that must have run before buffers are there."""
        found = 0
        for buffer in buffers:
            if buffer in self._bits:
                leader = self.leader(buffer)
                found |= self._bits[leader] | self._all_before(leader)
        return found

    def _all_before(self, leader: int) -> int:
        """Bits of all kernels that must have run before a group: who waits for one of those that were joined waits for
        all of them."""
        found = self._waits_for[leader]
        for other in self._joined:
            if found & self._bits[other]:
                found |= self._bits[other] | self._waits_for[other]
        return found & ~self._bits[leader]

    def _join(self, a: int, b: int) -> None:
        before = self._all_before(a) | self._all_before(b)
        self._leader[b] = a
        self._reduced[a] |= self._reduced[b]
        self._members[a] += self._members[b]
        self._bits[a] |= self._bits[b]
        self._waits_for[a] = before
        self._joined = self._joined - {b} | {a}
        for other in self._joined:
            if self._waits_for[other] & self._bits[a]:
                self._waits_for[other] |= self._bits[a] | before
