"""XLA:GPU's priority fusion, replayed on a program: what saves most time is fused first, while anything is saved.

A producer is fused into all kernels that read it, or into none: its result is then never written, and its work is done
in each of them. What that saves is the time of the kernels before, less their time after. A kernel takes its launch,
then the longer of arithmetic and memory, and a twentieth of the shorter. Before that, products take what they alone
read. (openxla/xla: `gemm_fusion.cc`, `softmax_rewriter_triton.cc`, `priority_fusion.cc`,
`gpu_performance_model_base.cc`, `gpu_fusible.cc`; arithmetic per element from `hlo_op_profiles_data.h`.)
"""

from __future__ import annotations

import dataclasses
import heapq

import numpy as np

from jaxremat.backends.devices import Device
from jaxremat.cost.fused import Fusion, reachable, readers_of, written_bytes
from jaxremat.cost.hlo_model import Program
from jaxremat.cost.softmax import RowKernel, row_kernels
from jaxremat.trace.primitives import ELEMENTWISE, MOVING

_LAUNCH_SECONDS = 1e-6  # kKernelLaunchOverhead
_OVERLAP = 0.95  # kMemoryComputeParallelism
_MOST_READS = 96  # MaxOperandsAndOutputsPerFusion
_PRODUCERS = (ELEMENTWISE | MOVING | {"random_bits"}) - {"bitcast"}
_CONSUMERS = _PRODUCERS | {"reduce", "scatter", "scatter-add"}
_PRODUCTS = {"dot"}
_PARTIAL = {"broadcast", "slice", "dynamic_slice", "gather"}  # of which entries are read more or less than once


def fuse_by_priority(program: Program, device: Device) -> Fusion:
    """Decides which operations of a program write buffers on a GPU."""
    return _Fuser(program, device).run()


@dataclasses.dataclass(eq=False, slots=True)
class _Kernel:
    """A kernel under way.

    Attributes:
      work: arithmetic operations.
      reads: how much of each buffer it reads; more than 1 where parts are read several times.
      inside: the operations that it runs.
      moved_bytes: what it reads and writes.
      seconds: what it takes.
    """

    work: float
    reads: dict[int, float]
    inside: set[int]
    moved_bytes: float = 0.0
    seconds: float = 0.0


class _Fuser:
    def __init__(self, program: Program, device: Device) -> None:
        self.program, self.ops, self.reads = program, program.ops, program.reads
        self.bandwidth, self.flops = device.bandwidth_bytes_per_second, device.vector_flops_per_second
        self.consumers = _CONSUMERS | _PRODUCTS if device.backend.products_compute_operands else _CONSUMERS
        self.element_work = device.backend.element_work or {}
        self.outputs = set(program.outputs)
        self.rows: set[int] = set()
        self.elements = [op.elements for op in self.ops]
        self.sizes = [float(op.size_bytes) for op in self.ops]
        self.reduces = [op.kind == "reduce" for op in self.ops]
        self.written = [written_bytes(program, index) for index in range(len(self.ops))]
        self.live = reachable(program)
        self.users = readers_of(program, self.live)
        self.kernels: dict[int, _Kernel] = {}
        self.readers: dict[int, set[int]] = {index: set() for index in self.live}
        for index in self.live:
            if self.ops[index].kind != "input":
                self._open(index)

    def _open(self, index: int) -> None:
        kind, elements, operands = self.ops[index].kind, self.elements[index], self.reads[index]
        reads = dict.fromkeys(operands, 1.0)
        if kind in _PARTIAL:
            reads = {read: elements / max(self.elements[read], 1) for read in operands}
        elif kind == "dynamic_update_slice":
            reads[operands[0]] = 0.0
        work = elements * self.element_work.get(kind, 1)
        if kind == "reduce":
            work = sum(self.elements[read] for read in operands)
        self.kernels[index] = self._timed(index, _Kernel(float(work), reads, {index}))
        for read in reads:
            self.readers[read].add(index)

    def _timed(self, root: int, kernel: _Kernel) -> _Kernel:
        """A kernel with what it moves and takes worked out."""
        read, sizes = 0.0, self.sizes
        for buffer, share in kernel.reads.items():
            read += sizes[buffer] * share if share < 1.0 else sizes[buffer]
        kernel.moved_bytes = self.written[root] + read
        kernel.seconds = self._seconds(kernel.work, kernel.moved_bytes)
        return kernel

    def run(self) -> Fusion:
        for index in self.live:
            if self.ops[index].kind == "dot":
                self._take_operands(index)
        for kernel in row_kernels(self.program, self.users):
            self._as_one(kernel)
        self._fuse_where_that_saves(self._fusible())
        return self._fusion()

    def _fusible(self) -> set[int]:
        """Producers that only kernels read which can take them, and that nobody else asks for."""
        consumers = {index for index in self.kernels if self.ops[index].kind in self.consumers}
        written = self.outputs | self.rows
        return {
            index
            for index in self.kernels
            if self.ops[index].kind in _PRODUCERS and index not in written and self.readers[index] <= consumers
        }

    def _fuse_where_that_saves(self, fusible: set[int]) -> None:
        """Fuses what saves most, again and again, while something saves time."""
        gains = {index: gain for index in self.live if index in fusible and (gain := self._saved(index)) > 0}
        queue = [(-gain, index) for index, gain in gains.items()]
        heapq.heapify(queue)
        while queue:
            expected, index = heapq.heappop(queue)
            if gains.get(index) != -expected:
                continue  # no longer so: what it is now stands elsewhere in the queue
            del gains[index]
            readers = self._fused(index)
            affected = readers.union(*(self.kernels[reader].reads for reader in readers))
            for neighbour in affected & fusible:
                gain = self._saved(neighbour)
                if gain > 0 and gain != gains.get(neighbour):
                    heapq.heappush(queue, (-gain, neighbour))
                gains[neighbour] = gain

    def _as_one(self, rows: RowKernel) -> None:
        """One kernel that reads every buffer once, and that no one computes again."""
        if not rows.inside <= self.kernels.keys():
            return
        self.rows.add(rows.root)
        kernel = self.kernels[rows.root]
        for index in rows.inside:
            part = self.kernels.pop(index)
            self.readers.pop(index)
            kernel.work, kernel.inside = kernel.work + part.work, kernel.inside | part.inside
            kernel.reads = kernel.reads | part.reads
            for read in part.reads.keys() - rows.inside:
                self.readers[read] = (self.readers[read] - {index}) | {rows.root}
        kernel.reads = {read: min(share, 1.0) for read, share in kernel.reads.items() if read not in rows.inside}
        self._timed(rows.root, kernel)

    def _take_operands(self, product: int) -> None:
        """A product computes itself what follows, entry by entry, from one array that is there, if no one else reads
        it."""
        for read in tuple(self.kernels[product].reads):
            chain = self._own_chain(read, product)
            for index in chain:
                self._fused(index)
            for index in {spread for link in chain for spread in self.reads[link] if self._is_spread(spread)}:
                self._made_inside(index, product)

    def _made_inside(self, index: int, product: int) -> None:
        """A product spreads a constant or a row itself; others read it as before."""
        kernel, spread = self.kernels[product], self.kernels[index]
        _merge(kernel, index, spread)
        self._timed(product, kernel)
        for read in spread.reads:
            self.readers[read].add(product)
        self.readers[index].discard(product)
        if not self.readers[index] and index not in self.outputs:
            self._fused(index)

    def _own_chain(self, index: int, reader: int) -> list[int]:
        """The operations from a reader back to an array that is there; none where they start elsewhere."""
        chain: list[int] = []
        while index in self.kernels and self.ops[index].kind in _PRODUCERS:
            op = self.ops[index]
            full = {read for read in self.reads[index] if not self._is_spread(read)}
            alone = self.readers[index] == {reader} and index not in self.outputs
            if not alone or op.kind not in ELEMENTWISE or len(full) != 1:
                return []
            chain.append(index)
            reader, (index,) = index, full
        return chain

    def _is_spread(self, index: int) -> bool:
        """Whether a value is a constant or a row, spread; sums of rows belong to what they normalise."""
        sums = any(self.ops[read].kind == "reduce" for read in self.reads[index])
        return self.ops[index].kind == "broadcast" and not sums

    def _saved(self, index: int) -> float:
        """Seconds that fusing a producer into all its readers saves; 0 where one would read too many buffers."""
        kernels = self.kernels
        producer = kernels[index]
        saved = producer.seconds
        for reader in self.readers[index]:
            if self.reduces[reader] and self._normalises(index, reader):
                continue
            kernel = kernels[reader]
            together = self._seconds_together(kernel, index, producer)
            if together is None:
                return 0.0
            saved += kernel.seconds - together
        return saved

    def _seconds_together(self, kernel: _Kernel, index: int, producer: _Kernel) -> float | None:
        """What a kernel takes that runs a producer of its own; None where it would read too many buffers."""
        reads, sizes = kernel.reads, self.sizes
        share = reads[index]
        moved, number = kernel.moved_bytes - sizes[index] * (share if share < 1.0 else 1.0), len(reads) - 1
        for read, part in producer.reads.items():
            before, part = reads.get(read), share * part
            if before is None:
                number += 1
                moved += sizes[read] * (part if part < 1.0 else 1.0)
            elif before < 1.0:
                moved += sizes[read] * ((before + part if before + part < 1.0 else 1.0) - before)
        return None if number > _MOST_READS else self._seconds(kernel.work + share * producer.work, moved)

    def _normalises(self, index: int, reader: int) -> bool:
        """Whether a reader sums the rows of a value for another reader of it: a softmax, say, is one kernel."""
        rows = self.reduces[reader] and self.ops[reader].shape == self.ops[index].shape[:-1]
        return rows and any(reader in self.kernels[other].reads for other in self.readers[index])

    def _seconds(self, work: float, moved_bytes: float) -> float:
        memory, arithmetic = moved_bytes / self.bandwidth, work / self.flops
        return _LAUNCH_SECONDS + arithmetic + memory - _OVERLAP * (arithmetic if arithmetic < memory else memory)

    def _fused(self, index: int) -> set[int]:
        """Fuses a producer into its readers; returns those."""
        producer, readers = self.kernels.pop(index), self.readers.pop(index)
        for read in producer.reads:
            self.readers[read].discard(index)
        for reader in readers:
            kernel = self.kernels[reader]
            _merge(kernel, index, producer)
            kernel.inside |= producer.inside
            self._timed(reader, kernel)
            for read in producer.reads:
                self.readers[read].add(reader)
        return readers

    def _fusion(self) -> Fusion:
        kernel_of = np.full(len(self.ops), -1, np.int64)
        for index, kernel in self.kernels.items():
            kernel_of[list(kernel.inside)] = index
        roots = tuple(index for index in self.live if index in self.kernels)
        kernel_of[list(roots)] = roots
        return Fusion(
            self.program,
            roots,
            {index: self.kernels[index].reads for index in roots},
            kernel_of,
            {index: frozenset(kernel.inside) for index, kernel in self.kernels.items()},
            self.users,
        )


def _merge(kernel: _Kernel, index: int, producer: _Kernel) -> None:
    """Lets a kernel run a producer of its own instead of reading its result."""
    reads = kernel.reads
    share = reads.pop(index)
    for read, part in producer.reads.items():
        reads[read] = reads.get(read, 0.0) + share * part
    kernel.work += share * producer.work
