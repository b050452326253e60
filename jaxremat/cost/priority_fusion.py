"""XLA:GPU's priority fusion, replayed on a program: what saves most time is fused first, while anything is saved.

A producer is fused into all kernels that read it, or into none: its result is then never written, and its work is done
in each of them. What that saves is the time of the kernels before, less their time after. A kernel takes its launch,
then the longer of arithmetic and memory, and a twentieth of the shorter; a reduction in few blocks reads no faster than
their cores. Before that, products take what they alone read and what alone reads them, and diamonds become kernels over
rows: those run in tiles of whole rows, so what they reduce can be read again in the same kernel, and what is fused with
them must run so, too. (openxla/xla: `gemm_fusion.cc`, `softmax_rewriter_triton.cc`, `priority_fusion.cc`,
`gpu_performance_model_base.cc`, `gpu_indexing_performance_model.cc`, `gpu_fusible.cc`; arithmetic per element from
`hlo_op_profiles_data.h`.)
"""

from __future__ import annotations

import dataclasses
import heapq
import math
from collections.abc import Hashable, Iterator

import numpy as np

from jaxremat.backends.devices import Device
from jaxremat.cost.bodies import Islands
from jaxremat.cost.diamonds import Diamond, diamonds
from jaxremat.cost.fused import Fusion, reachable, readers_of, written_bytes
from jaxremat.cost.hlo_builder import Program
from jaxremat.cost.reductions import blocks
from jaxremat.trace.primitives import ELEMENTWISE, MOVING

_LAUNCH_SECONDS = 1e-6  # kKernelLaunchOverhead
_OVERLAP = 0.95  # kMemoryComputeParallelism
_MOST_READS = 96  # MaxOperandsAndOutputsPerFusion
_PRODUCERS = (ELEMENTWISE | MOVING | {"random_bits"}) - {"bitcast"}
_CONSUMERS = _PRODUCERS | {"reduce", "scatter", "scatter-add"}
_HEROES = {"dot", "conv", "reduce"}
_BY_ROWS = ELEMENTWISE | {"broadcast", "iota", "slice"}  # IsTritonSupportedInstruction
_PARTIAL = {"broadcast", "slice", "dynamic_slice", "gather"}  # of which entries are read more or less than once


def fuse_by_priority(program: Program, device: Device, islands: Islands) -> Fusion:
    """Decides which operations of a program write buffers on a GPU; `islands`: how parts are fused, where known."""
    return _Fuser(program, device).run(islands)


@dataclasses.dataclass(eq=False, slots=True)
class _Kernel:
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


class _Fuser:
    def __init__(self, program: Program, device: Device) -> None:
        self.program, self.ops, self.reads = program, program.ops, program.reads
        self.bandwidth, self.flops = device.bandwidth_bytes_per_second, device.vector_flops_per_second
        self.cores = max(device.cores, 1)
        self.core_bandwidth = device.core_bytes_per_second
        self.computes_operands = device.backend.products_compute_operands
        self.rows_in_one_kernel = device.backend.rows_in_one_kernel
        self.element_work = device.backend.element_work or {}
        self.outputs = set(program.outputs)
        self.products: set[int] = set()
        self.elements = [op.elements for op in self.ops]
        self.sizes = [float(op.size_bytes) for op in self.ops]
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
        work = elements * self.element_work.get(kind, 0 if kind in MOVING else 1)
        reduces, is_unary = kind == "reduce", kind in ELEMENTWISE and len(operands) == 1
        if reduces:
            work = self.elements[operands[0]] * self.element_work.get(self.ops[index].combines, 1)
        kernel = _Kernel(float(work), reads, {index}, self._runs_by_rows(index), is_unary, reduces)
        if reduces and self.core_bandwidth < math.inf:
            kernel.blocks, kernel.loop = blocks(self.ops[index], self.ops[operands[0]]), self.elements[operands[0]]
        self.kernels[index] = kernel
        for read in reads:
            self.readers[read].add(index)

    def _runs_by_rows(self, index: int) -> bool:
        """Whether an operation can run in tiles of whole rows: sums of rows can, and what moves rows as they are."""
        op, operands = self.ops[index], self.reads[index]
        before = self.ops[operands[0]].shape if operands else ()
        if op.kind == "transpose":
            return before != op.shape and before[-1] == op.shape[-1]
        return op.kind in _BY_ROWS or (op.kind == "reduce" and before[:-1] == op.shape)

    def _time(self, root: int) -> None:
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

    def _read_again(self, reads: dict[int, float], loop: int) -> float:
        """Bytes that a loop reads of arrays with fewer elements than it goes through, but for the first time."""
        times = ((read, min(share, loop / max(self.elements[read], 1))) for read, share in reads.items())
        return sum(self.sizes[read] * (share - 1.0) for read, share in times if share > 1.0)

    def run(self, islands: Islands) -> Fusion:
        for index in self.live:
            if self.ops[index].kind == "dot":
                self._take_operands(index)
                self.products.add(self._take_followers(index))
            elif self.ops[index].kind == "conv" and not self.computes_operands:
                self.products.add(self._take_bias(index))
        for diamond in diamonds(self.program, self.users) if self.rows_in_one_kernel else ():
            self._as_one(diamond)
        self._make_where_read()
        fusible = self._fusible()
        for island in self._islands(fusible):
            self._fuse_island(island, fusible, islands)
        return self._fusion()

    def _make_where_read(self) -> None:
        """Fuses constants and counts, which read nothing: whatever else is fused, that moves fewer bytes. They would
        tie all that reads a number to one another."""
        for index in [index for index in sorted(self._fusible()) if not self.reads[index]]:
            self._fused(index)

    def _fusible(self) -> set[int]:
        """Producers that only kernels read which can take them, and that nobody else asks for."""
        takers = {index for index in self.kernels if self._takes_producers(index)}
        written = self.outputs | self.products
        kinds = _PRODUCERS | {"reduce"}
        return {
            index
            for index in self.kernels
            if self.ops[index].kind in kinds and index not in written and self.readers[index] <= takers
        }

    def _takes_producers(self, index: int) -> bool:
        return self.computes_operands if index in self.products else self.ops[index].kind in _CONSUMERS

    def _islands(self, fusible: set[int]) -> Iterator[list[int]]:
        """The kernels that may become one, directly or by way of others, in program order."""
        seen: set[int] = set()
        for start in sorted(fusible):
            island, waiting = set[int](), {start} - seen
            while waiting:
                index = waiting.pop()
                island.add(index)
                near = fusible.intersection(self.kernels[index].reads)
                waiting |= (near | self.readers[index] if index in fusible else near) - island
            seen |= island
            if island:
                yield sorted(island)

    def _fuse_island(self, island: list[int], fusible: set[int], islands: Islands) -> None:
        """Fuses an island, as an equal one was if there was any."""
        facts = self._facts(island, fusible)
        if facts in islands:
            for number in islands[facts]:
                self._fused(island[number])
        else:
            fused = self._fuse_where_that_saves(island, fusible)
            place = {index: number for number, index in enumerate(island)}
            islands[facts] = tuple([place[index] for index in fused])

    def _facts(self, island: list[int], fusible: set[int]) -> Hashable:
        """What decides how an island is fused, in numbers of its own."""
        facts: list[Hashable] = []
        number = {index: k for k, index in enumerate(island)}
        for index in island:
            kernel = self.kernels[index]
            reads = tuple([number.setdefault(read, len(number)) for read in kernel.reads])
            runs = kernel.work, kernel.by_rows, kernel.is_unary, kernel.reduces, kernel.padding, kernel.blocks
            facts.append((index in fusible, self.written[index], kernel.loop, runs, reads, *kernel.reads.values()))
        return *facts, *[(self.sizes[index], self.elements[index]) for index in number]

    def _fuse_where_that_saves(self, island: list[int], fusible: set[int]) -> list[int]:
        """Fuses what saves most, again and again, while something saves time; returns what was fused, in order."""
        for index in island:
            self._time(index)
        gains = {index: gain for index in island if index in fusible and (gain := self._saved(index)) > 0}
        queue, fused = [(-gain, index) for index, gain in gains.items()], []
        heapq.heapify(queue)
        while queue:
            expected, index = heapq.heappop(queue)
            if gains.get(index) != -expected:
                continue  # no longer so: what it is now stands elsewhere in the queue
            del gains[index]
            fused.append(index)
            readers = self._fused(index)
            for reader in readers:
                self._time(reader)
            affected = readers.union(*(self.kernels[reader].reads for reader in readers))
            for neighbour in affected & fusible:
                gain = self._saved(neighbour)
                if gain > 0 and gain != gains.get(neighbour):
                    heapq.heappush(queue, (-gain, neighbour))
                gains[neighbour] = gain
        return fused

    def _as_one(self, diamond: Diamond) -> None:
        """One kernel over rows, which reads every buffer once."""
        if diamond.inside | {diamond.root} <= self.kernels.keys():
            row = self.ops[diamond.root].shape[-1]
            self.kernels[diamond.root].padding = (1 << (row - 1).bit_length()) / row
            for index in sorted(diamond.inside, reverse=True):
                self._fused(index)

    def _take_operands(self, product: int) -> None:
        """A product computes itself what follows, entry by entry, from one array that is there, if no one else reads
        it."""
        for read in tuple(self.kernels[product].reads):
            chain = self._own_chain(read, product)
            for index in chain:
                self._fused(index)
            for index in {spread for link in chain for spread in self.reads[link] if self._is_spread(spread)}:
                self._made_inside(index, product)

    def _take_followers(self, product: int) -> int:
        """A product computes what alone reads it, entry by entry, with what is there; returns the last of it."""
        while (follower := self._follower(product)) is not None:
            self._fused(product)
            product = follower
            for read in set(self.reads[product]) & self.kernels.keys():
                if self.ops[read].kind == "broadcast":
                    self._made_inside(read, product)
        return product

    def _take_bias(self, convolution: int) -> int:
        """The library's convolutions add a row to what alone reads them (`cudnn_fused_conv_rewriter.cc`); returns the
        last of it."""
        follower = self._follower(convolution)
        if follower is None or self.ops[follower].kind != "add":
            return convolution
        (row,) = (read for read in self.reads[follower] if read != convolution)
        if self.ops[row].kind != "broadcast" or row not in self.kernels:
            return convolution
        self._fused(convolution)
        self._made_inside(row, follower)
        return follower

    def _follower(self, index: int) -> int | None:
        """What alone reads a product and is computed with it; what is only widened is left to its readers, unless
        products compute what they read, too."""
        if len(self.users[index]) != 1 or index in self.outputs:
            return None
        (follower,) = self.users[index]
        op, operands = self.ops[follower], self.reads[follower]
        widened = op.kind == "convert_element_type" and op.size_bytes > self.ops[index].size_bytes
        if op.kind not in ELEMENTWISE or operands.count(index) > 1:
            return None
        if follower in self.products or follower not in self.kernels:
            return None
        if (widened and self.users[follower] and not self.computes_operands) or self._is_torn_off(index, follower):
            return None
        return follower if all(read == index or self._is_there(read) for read in operands) else None

    def _is_torn_off(self, product: int, follower: int) -> bool:
        """Whether a barrier and others take what follows a product in another shape than the product's: XLA multiplies
        matrices, all rows in one dimension, and only without the barrier would it reshape what follows instead."""
        users = self.users[follower]
        fenced = len(users) > 1 and any(self.ops[user].kind == "barrier" for user in users)
        return fenced and not self.computes_operands and len(self.ops[product].shape) > 2

    def _is_there(self, index: int) -> bool:
        """Whether a product can read a value as it is: a constant, a row or an array that no loop computes."""
        if self.ops[index].kind == "broadcast":
            return all(self.ops[read].kind not in _CONSUMERS for read in self.reads[index])
        return index in self.products or self.ops[index].kind not in _CONSUMERS

    def _made_inside(self, index: int, product: int) -> None:
        """A product spreads a constant or a row itself; others read it as before."""
        kernel, spread = self.kernels[product], self.kernels[index]
        _merge(kernel, index, spread)
        for read in spread.reads:
            self.readers[read].add(product)
        self.readers[index].discard(product)
        if not self.readers[index] and index not in self.outputs:
            self._fused(index)

    def _own_chain(self, index: int, reader: int) -> list[int]:
        """The operations from a reader back to an array that is there; none where they start elsewhere."""
        chain: list[int] = []
        while index in self.kernels and index not in self.products and self.ops[index].kind in _PRODUCERS:
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

    def _seconds_together(self, kernel: _Kernel, index: int, producer: _Kernel) -> float | None:
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
        return _overlapped(moved_bytes / self.bandwidth, work / self.flops)

    def _seconds_in_blocks(self, blocks: float, work: float, moved_bytes: float, again: float) -> float:
        """What a kernel of some blocks takes: what it reads again comes from caches, but no faster than cores read."""
        at_once = blocks * self.core_bandwidth
        memory = moved_bytes / min(self.bandwidth, at_once) + again / at_once
        return _overlapped(memory, work / (self.flops * min(blocks / self.cores, 1.0)))

    def _fused(self, index: int) -> set[int]:
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

    def _fusion(self) -> Fusion:
        kernel_of = np.full(len(self.ops), -1, np.int64)
        for index, kernel in self.kernels.items():
            kernel_of[list(kernel.inside)] = index
        roots = self._order()
        kernel_of[list(roots)] = roots
        return Fusion(
            self.program,
            roots,
            {index: self.kernels[index].reads for index in roots},
            kernel_of,
            {index: frozenset(kernel.inside) for index, kernel in self.kernels.items()},
            self.users,
            frozenset(filter(self._is_compiled_apart, roots)),
        )

    def _is_compiled_apart(self, index: int) -> bool:
        inside = {self.ops[inner].kind for inner in self.kernels[index].inside}
        return "dot" in inside or self.kernels[index].padding > 0

    def _order(self) -> tuple[int, ...]:
        """The kernels in program order; products and sums stand where they are made, whatever they do to their results,
        unless that reads something else that is made later."""
        place: dict[int, int] = {}
        for index in filter(self.kernels.__contains__, self.live):
            kernel, place[index] = self.kernels[index], index
            heroes = [inner for inner in kernel.inside if self.ops[inner].kind in _HEROES]
            if heroes:
                place[index] = max((*heroes, *(place.get(read, read) for read in kernel.reads)))
        return tuple(sorted(place, key=lambda index: (place[index], index)))


def _overlapped(memory: float, arithmetic: float) -> float:
    return _LAUNCH_SECONDS + arithmetic + memory - _OVERLAP * (arithmetic if arithmetic < memory else memory)


def _reads_together(reads: dict[int, float], index: int, producer: _Kernel, share: float) -> dict[int, float]:
    """What a kernel reads that runs some share of a producer of its own."""
    together = {read: part for read, part in reads.items() if read != index}
    for read, part in producer.reads.items():
        together[read] = together.get(read, 0.0) + share * part
    return together


def _may_run(kernel: _Kernel, producer: _Kernel) -> bool:
    """Whether a kernel can run a producer: with rows, only what runs by rows; what is reduced, only to its end."""
    if kernel.padding or producer.padding:
        return kernel.by_rows and producer.by_rows
    return kernel.is_unary or not producer.reduces


def _merge(kernel: _Kernel, index: int, producer: _Kernel) -> None:
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
