"""The kernels of a program while they are fused: what each runs, reads and takes, by XLA:GPU's performance model.

A kernel takes its launch, then the longer of arithmetic and memory, and a twentieth of the shorter; a reduction in few
blocks reads no faster than their cores. (openxla/xla: `gpu_performance_model_base.cc`,
`gpu_indexing_performance_model.cc`, `gpu_fusible.cc`; arithmetic per element from `hlo_op_profiles_data.h`.)
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from jaxremat.backends.devices import Device
from jaxremat.cost.fused import Fusion, Merged, reachable, readers_of, written_bytes
from jaxremat.cost.hlo_builder import HloProgram
from jaxremat.cost.reductions import blocks
from jaxremat.trace.primitives import ELEMENTWISE, MOVING

PRODUCERS = (ELEMENTWISE | MOVING | {"random_bits"}) - {"bitcast"}
"""What can be computed where it is read."""

CONSUMERS = PRODUCERS | {"reduce", "scatter", "scatter-add"}
"""What can compute what it reads."""

_LAUNCH_SECONDS = 1e-6  # kKernelLaunchOverhead
_OVERLAP = 0.95  # kMemoryComputeParallelism
_MOST_READS = 96  # MaxOperandsAndOutputsPerFusion
_HEROES = {"dot", "conv", "reduce"}
_BY_ROWS = ELEMENTWISE | {"broadcast", "iota", "slice"}  # IsTritonSupportedInstruction
_KEEP_ROWS = {"reduce", "transpose"}  # if they do
_PARTIAL = {"broadcast", "slice", "dynamic_slice", "gather"}  # of which entries are read more or less than once


@dataclasses.dataclass(eq=False, slots=True)
class FusedKernel:
    """A kernel under way.

    Attributes:
      work: arithmetic operations.
      reads: how much of each buffer it reads; more than 1 where parts are read several times.
      inside: the operations that it runs.
      by_rows: whether it can run in tiles of whole rows.
      is_unary: whether it does nothing but change one array entry by entry.
      reduces: whether it reduces anything.
      padding: where it runs in tiles of whole rows, which are padded to powers of two, by how much; elsewhere 0.
      moved_bytes: what it reads and writes.
      seconds: what it takes.
      blocks: of a reduction, of threads, into which it is split; elsewhere infinite.
      loop: of a reduction, how many elements it goes through; elsewhere 0.
    """

    work: float
    reads: dict[int, float]
    inside: set[int]
    by_rows: bool
    is_unary: bool
    reduces: bool
    padding: float = 0.0
    moved_bytes: float = 0.0
    seconds: float = 0.0
    blocks: float = math.inf
    loop: int = 0


class KernelGraph:
    """Kernels, and who reads what they write.

    Attributes:
      program, ops, reads: the operations.
      outputs: those whose results the program returns.
      products: kernels of contractions and convolutions.
      live: operations that are needed, in program order.
      users: for each operation, those that read it.
      kernels: by the operation whose result each writes.
      readers: for each operation, the kernels that read its result.
      elements, sizes, written: of each operation: entries, bytes, bytes that it would write as a kernel.
      computes_operands: whether products compute what they read.
      rows_in_one_kernel: whether what normalises rows goes over them once.
    """

    def __init__(self, program: HloProgram, device: Device) -> None:
        self.program, self.ops, self.reads = program, program.ops, program.reads
        self._bandwidth, self._flops = device.bandwidth_bytes_per_second, device.vector_flops_per_second
        self._cores = max(device.cores, 1)
        self._core_bandwidth = device.core_bytes_per_second
        self.computes_operands = device.backend.products_compute_operands
        self.rows_in_one_kernel = device.backend.rows_in_one_kernel
        self._element_work = device.backend.element_work or {}
        self.outputs = set(program.outputs)
        self.products: set[int] = set()
        self.elements = [op.elements for op in self.ops]
        self.sizes = [float(op.size_bytes) for op in self.ops]
        self.written = [written_bytes(program, index) for index in range(len(self.ops))]
        self.live = reachable(program)
        self.users = readers_of(program, self.live)
        self.readers = {index: set(self.users[index]) for index in self.live}
        self.kernels = {index: self._opened(index) for index in self.live if self.ops[index].kind != "input"}

    def _opened(self, index: int) -> FusedKernel:
        """An operation as a kernel of its own."""
        kind, elements, operands = self.ops[index].kind, self.elements[index], self.reads[index]
        reads = dict.fromkeys(operands, 1.0)
        if kind in _PARTIAL:
            reads = {read: elements / max(self.elements[read], 1) for read in operands}
        elif kind == "dynamic_update_slice":
            reads[operands[0]] = 0.0
        work = elements * self._element_work.get(kind, 0 if kind in MOVING else 1)
        reduces, is_unary = kind == "reduce", len(operands) == 1 and kind in ELEMENTWISE
        if reduces:
            work = self.elements[operands[0]] * self._element_work.get(self.ops[index].combines, 1)
        by_rows = kind in _BY_ROWS or (kind in _KEEP_ROWS and self._keeps_rows(index))
        kernel = FusedKernel(float(work), reads, {index}, by_rows, is_unary, reduces)
        if reduces and self._core_bandwidth < math.inf:
            kernel.blocks, kernel.loop = blocks(self.ops[index], self.ops[operands[0]]), self.elements[operands[0]]
        return kernel

    def _keeps_rows(self, index: int) -> bool:
        """Whether rows are reduced, or moved as they are."""
        op, before = self.ops[index], self.ops[self.reads[index][0]].shape
        return before[:-1] == op.shape if op.kind == "reduce" else before != op.shape and before[-1] == op.shape[-1]

    def time(self, root: int) -> None:
        """Works out what a kernel moves and takes."""
        kernel, read, sizes = self.kernels[root], 0.0, self.sizes
        for buffer, share in kernel.reads.items():
            read += sizes[buffer] * share if share < 1.0 else sizes[buffer]
        kernel.moved_bytes = self.written[root] + read
        if kernel.loop and not kernel.padding:
            again = self._read_again(kernel.reads, kernel.loop)
            kernel.seconds = self._seconds_in_blocks(kernel.blocks, kernel.work, kernel.moved_bytes, again)
        else:
            kernel.seconds = self._seconds(kernel.work * (kernel.padding or 1.0), kernel.moved_bytes)

    def fuse(self, index: int) -> set[int]:
        """Fuses a producer into its readers; returns those."""
        producer, readers = self.kernels.pop(index), self.readers.pop(index)
        for read in producer.reads:
            self.readers[read].discard(index)
        for reader in readers:
            kernel = self.kernels[reader]
            _merge(kernel, index, producer)
            kernel.inside |= producer.inside
            for read in producer.reads:
                self.readers[read].add(reader)
        return readers

    def make_inside(self, index: int, product: int) -> None:
        """A product spreads a constant or a row itself; others read it as before."""
        kernel, spread = self.kernels[product], self.kernels[index]
        _merge(kernel, index, spread)
        for read in spread.reads:
            self.readers[read].add(product)
        self.readers[index].discard(product)
        if not self.readers[index] and index not in self.outputs:
            self.fuse(index)

    def saved(self, index: int) -> float:
        """Seconds that fusing a producer into all its readers saves; 0 where one cannot take it."""
        kernels, producer = self.kernels, self.kernels[index]
        saved, is_special = producer.seconds, producer.reduces or producer.padding
        for reader in self.readers[index]:
            kernel = kernels[reader]
            if (is_special or kernel.padding) and not _may_run(kernel, producer):
                return 0.0
            together = self._seconds_together(kernel, index, producer)
            if together is None:
                return 0.0
            saved += kernel.seconds - together
        return saved

    def _seconds_together(self, kernel: FusedKernel, index: int, producer: FusedKernel) -> float | None:
        """What a kernel takes that runs a producer of its own; None where it would read too many buffers."""
        reads, sizes = kernel.reads, self.sizes
        share, padding = reads[index], kernel.padding if kernel.padding > producer.padding else producer.padding
        if padding:
            share = min(share, 1.0)
        moved, number = kernel.moved_bytes - sizes[index] * (share if share < 1.0 else 1.0), len(reads) - 1
        for read, part in producer.reads.items():
            before, part = reads.get(read), share * part
            if before is None:
                number += 1
                moved += sizes[read] * (part if part < 1.0 else 1.0)
            elif before < 1.0:
                moved += sizes[read] * ((before + part if before + part < 1.0 else 1.0) - before)
        if number > _MOST_READS:
            return None
        work = kernel.work + share * producer.work
        if padding or not (kernel.loop or producer.loop):
            return self._seconds(work * (padding or 1.0), moved)
        again = self._read_again(_reads_together(reads, index, producer, share), kernel.loop or producer.loop)
        return self._seconds_in_blocks(min(kernel.blocks, producer.blocks), work, moved, again)

    def _seconds(self, work: float, moved_bytes: float) -> float:
        return _overlapped(moved_bytes / self._bandwidth, work / self._flops)

    def _seconds_in_blocks(self, blocks: float, work: float, moved_bytes: float, again: float) -> float:
        """What a kernel of some blocks takes: what it reads again comes from caches, but no faster than cores read."""
        at_once = blocks * self._core_bandwidth
        memory = moved_bytes / min(self._bandwidth, at_once) + again / at_once
        return _overlapped(memory, work / (self._flops * min(blocks / self._cores, 1.0)))

    def _read_again(self, reads: dict[int, float], loop: int) -> float:
        """Bytes that a loop reads of arrays with fewer elements than it goes through, but for the first time."""
        times = ((read, min(share, loop / max(self.elements[read], 1))) for read, share in reads.items())
        return sum(self.sizes[read] * (share - 1.0) for read, share in times if share > 1.0)

    def merged(self, numbered: Sequence[int], size: int) -> tuple[Merged, ...]:
        """The kernels that are left of the first `size` of some operations, in the numbers that their places are."""
        number = {index: k for k, index in enumerate(numbered)}
        left = [(k, self.kernels[index]) for k, index in enumerate(numbered[:size]) if index in self.kernels]
        return tuple(
            Merged(
                root,
                [k for k in range(size) if numbered[k] in kernel.inside],
                {number[read]: share for read, share in kernel.reads.items()},
                kernel.padding,
            )
            for root, kernel in left
        )

    def merge(self, numbered: Sequence[int], size: int, merged: Sequence[Merged]) -> None:
        """Leaves, of the first `size` of some operations, the kernels that were left of equal ones."""
        inside = [self.kernels[index].inside for index in numbered[:size]]
        for root, members, reads, padding in merged:
            kernel = self.kernels[numbered[root]]
            kernel.inside = set().union(*[inside[member] for member in members])
            kernel.reads = {numbered[read]: share for read, share in reads.items()}
            kernel.padding = padding
        left = {each.root for each in merged}
        for k, index in enumerate(numbered[:size]):
            if k not in left:
                del self.kernels[index]

    def fusion(self) -> Fusion:
        """The program with the kernels that are left."""
        roots = self._order()
        return Fusion(
            self.program,
            roots,
            {index: self.kernels[index].reads for index in roots},
            {index: frozenset(kernel.inside) for index, kernel in self.kernels.items()},
            self.users,
            self._compiled_apart(),
        )

    def _compiled_apart(self) -> frozenset[int]:
        """Kernels that run a product, or by rows."""
        products = {index for index in self.live if self.ops[index].kind == "dot"}
        kernels = self.kernels.items()
        return frozenset(k for k, kernel in kernels if kernel.padding > 0 or not products.isdisjoint(kernel.inside))

    def _order(self) -> tuple[int, ...]:
        """The kernels in program order; products and sums stand where they are made, whatever they do to their results,
        unless that reads something else that is made later."""
        place: dict[int, int] = {}
        heroes = {index for index in self.live if self.ops[index].kind in _HEROES}
        for index, kernel in self.kernels.items():
            own, place[index] = heroes & kernel.inside, index
            if own:
                place[index] = max((*own, *(place.get(read, read) for read in kernel.reads)))
        return tuple(sorted(place, key=lambda index: (place[index], index)))


def _overlapped(memory: float, arithmetic: float) -> float:
    return _LAUNCH_SECONDS + arithmetic + memory - _OVERLAP * (arithmetic if arithmetic < memory else memory)


def _reads_together(reads: dict[int, float], index: int, producer: FusedKernel, share: float) -> dict[int, float]:
    """What a kernel reads that runs some share of a producer of its own."""
    together = {read: part for read, part in reads.items() if read != index}
    for read, part in producer.reads.items():
        together[read] = together.get(read, 0.0) + share * part
    return together


def _may_run(kernel: FusedKernel, producer: FusedKernel) -> bool:
    """Whether a kernel can run a producer: with rows, only what runs by rows; what is reduced, only to its end."""
    if kernel.padding or producer.padding:
        return kernel.by_rows and producer.by_rows
    return kernel.is_unary or not producer.reduces


def _merge(kernel: FusedKernel, index: int, producer: FusedKernel) -> None:
    """Lets a kernel run a producer of its own instead of reading its result."""
    share = kernel.reads[index]
    if producer.padding > kernel.padding:
        kernel.padding = producer.padding
    if kernel.padding:
        share = min(share, 1.0)
    kernel.reads = _reads_together(kernel.reads, index, producer, share)
    kernel.blocks, kernel.loop = min(kernel.blocks, producer.blocks), kernel.loop or producer.loop
    kernel.work += share * producer.work
    kernel.by_rows &= producer.by_rows
    kernel.is_unary &= producer.is_unary
    kernel.reduces |= producer.reduces
