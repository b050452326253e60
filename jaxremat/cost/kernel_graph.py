"""The kernels of a program while they are fused: what each runs, reads and takes, by XLA:GPU's performance model.

A kernel takes its launch, then the longer of arithmetic and memory, and a twentieth of the shorter; a reduction in few
blocks reads no faster than their cores. (openxla/xla: `gpu_performance_model_base.cc`,
`gpu_indexing_performance_model.cc`, `gpu_fusible.cc`; arithmetic per element from `hlo_op_profiles_data.h`.)
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple

from jaxremat.backends.devices import Device
from jaxremat.cost.fused import Fusion, Merged, reachable, readers_of, share_read, written_bytes
from jaxremat.cost.hlo_builder import HloProgram
from jaxremat.cost.hlo_ops import SCATTERS, Op
from jaxremat.cost.reductions import blocks
from jaxremat.trace.primitives import ELEMENTWISE, MOVING

PRODUCERS = (ELEMENTWISE | MOVING | {"random_bits", "window"}) - {"bitcast"}
"""What can be computed where it is read."""

CONSUMERS = PRODUCERS | SCATTERS | {"reduce"}
"""What can compute what it reads."""

_LAUNCH_SECONDS = 1e-6  # kKernelLaunchOverhead
_OVERLAP = 0.95  # kMemoryComputeParallelism
_SHARED_SPEEDUP, _OWN_SPEEDUP = 2.5, 8.0  # kL2CacheSpeedup, kL1CacheSpeedup
_OWN_CACHE_BYTES = 2048  # kL1CacheSizePerSM
_MOST_READS = 96  # MaxOperandsAndOutputsPerFusion
_HEROES = {"dot", "conv", "reduce"}
_BY_ROWS = ELEMENTWISE | {"broadcast", "iota", "slice", "transpose"}  # IsTritonSupportedInstruction
_PARTIAL = {"broadcast", "slice", "dynamic_slice", "gather", "window"}  # that read entries more or less than once


class Traffic(NamedTuple):
    """Bytes that a kernel moves.

    Attributes:
      memory: what it reads from memory, each byte once, and writes.
      shared: what it reads again from the cache that all cores share.
      own: what it reads again from their own caches.
    """

    memory: float
    shared: float
    own: float


_NONE = Traffic(0.0, 0.0, 0.0)


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
      elsewhere: what it reads not only where it computes an entry of its loop: each time more it is read, and computed,
        again; what it reads there it reads once.
      padding: where it runs in tiles of whole rows, which are padded to powers of two, by how much; elsewhere 0.
      traffic: what it moves.
      seconds: what it takes.
      blocks: of a reduction, of threads, into which it is split; elsewhere infinite.
    """

    work: float
    reads: dict[int, float]
    inside: set[int]
    by_rows: bool
    is_unary: bool
    reduces: bool
    elsewhere: set[int]
    padding: float = 0.0
    traffic: Traffic = _NONE
    seconds: float = 0.0
    blocks: float = math.inf


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class Single:
    """An operation as a kernel of its own: what decides about it, whatever its operands are.

    Attributes:
      number: the same for all that are alike.
      operands: the places of the operands that it reads; those aside that it computes itself.
      sizes: bytes that it writes; (bytes, entries) of its result and of each of these operands.
      shares: how much it reads of each of them.
      work, by_rows, is_unary, reduces, blocks: as in `FusedKernel`.
      is_entrywise: whether it reads an entry of its operands where it computes one of its loop, and computes that once.
    """

    number: int
    operands: tuple[int, ...]
    sizes: tuple[tuple[int, int], ...]
    shares: tuple[float, ...]
    work: float
    by_rows: bool
    is_unary: bool
    reduces: bool
    blocks: float
    is_entrywise: bool

    def kernel(self, index: int, operands: Sequence[int]) -> FusedKernel:
        """The kernel of an operation that reads some operands."""
        reads = self.reads(operands)
        return FusedKernel(
            self.work,
            reads,
            {index},
            self.by_rows,
            self.is_unary,
            self.reduces,
            set() if self.is_entrywise else set(reads),
            blocks=self.blocks,
        )

    def reads(self, operands: Sequence[int]) -> dict[int, float]:
        """How much is read of each of some operands."""
        return {operands[place]: share for place, share in zip(self.operands, self.shares)}


class Singles:
    """Operations as kernels of their own on one device, where the same ones are met again and again."""

    def __init__(self) -> None:
        self._of: dict[Hashable, Single] = {}
        self._alike: dict[Hashable, Single] = {}
        self._numbers: dict[Hashable, int] = {}

    def of(self, op: Op, operands: Sequence[Op], device: Device) -> Single:
        """An operation on some operands."""
        key = op, *operands
        found = self._of.get(key)
        if found is None:
            alike = tuple(map(_decisive, key))
            if alike not in self._alike:
                self._alike[alike] = self._numbered(_single(op, operands, device))
            found = self._of[key] = self._alike[alike]
        return found

    def without(self, single: Single, made: Mapping[int, Single]) -> Single:
        """One that computes some of its operands, which read nothing, itself."""
        key = single, *made.items()
        if key not in self._alike:
            kernel = single.kernel(-1, range(len(single.operands)))
            for place, each in made.items():
                _merge(kernel, place, each.kernel(-2, ()))
            self._alike[key] = self._numbered(_as_single(kernel, single))
        return self._alike[key]

    def _numbered(self, single: Single) -> Single:
        facts = tuple(getattr(single, field.name) for field in dataclasses.fields(Single)[2:])
        return dataclasses.replace(single, number=self._numbers.setdefault(facts, len(self._numbers)))


def _decisive(op: Op) -> Hashable:
    """What of an operation, or of one that it reads, decides what it takes as a kernel."""
    return op.kind, op.shape, op.size_bytes, op.combines, op.partition, op.window


def _single(op: Op, operands: Sequence[Op], device: Device) -> Single:
    kind, element_work = op.kind, device.backend.element_work or {}
    reduces, split = kind == "reduce", math.inf
    shares = [share_read(op, read) if kind in _PARTIAL else 1.0 for read in operands]
    if kind == "dynamic_update_slice":
        shares[0] = 0.0
    work = op.elements * op.window * element_work.get(op.combines or kind, 0 if kind in MOVING else 1)
    if reduces:
        work = operands[0].elements * element_work.get(op.combines, 1)
        if device.core_bytes_per_second < math.inf:
            split = blocks(op, operands[0])
    return Single(
        number=-1,
        operands=tuple(range(len(operands))),
        sizes=_sizes(op, operands),
        shares=tuple(shares),
        work=float(work),
        by_rows=kind in _BY_ROWS or (reduces and operands[0].shape[:-1] == op.shape),
        is_unary=len(operands) == 1 and kind in ELEMENTWISE,
        reduces=reduces,
        blocks=split,
        is_entrywise=device.backend.computes_entries_once and (reduces or kind in ELEMENTWISE),
    )


def _sizes(op: Op, operands: Sequence[Op]) -> tuple[tuple[int, int], ...]:
    written = operands[1].size_bytes if op.kind == "dynamic_update_slice" else op.size_bytes
    return (written, 0), *((each.size_bytes, each.elements) for each in (op, *operands))


def _as_single(kernel: FusedKernel, before: Single) -> Single:
    """A kernel that reads operands of one that was before by their places."""
    own, of_operands = before.sizes[:2], before.sizes[2:]
    places, shares = tuple(kernel.reads), tuple(kernel.reads.values())
    sizes = *own, *[of_operands[place] for place in places]
    flags = kernel.by_rows, kernel.is_unary, kernel.reduces
    return Single(-1, places, sizes, shares, kernel.work, *flags, kernel.blocks, before.is_entrywise)


class KernelGraph:
    """Kernels, and who reads what they write.

    A kernel is opened when something is done to it; until then it is the `Single` of its operation.

    Attributes:
      program, ops, reads: the operations.
      outputs: those whose results the program returns.
      products: kernels of contractions and convolutions.
      live: operations that are needed, in program order.
      users: for each operation, those that read it.
      left: the operations whose results kernels write.
      sizes, written: of each operation: bytes, bytes that it would write as a kernel.
      computes_operands: whether products compute what they read.
      rows_in_one_kernel: whether what normalises rows goes over them once.
    """

    def __init__(self, program: HloProgram, device: Device, singles: Singles) -> None:
        self.program, self.ops, self.reads = program, program.ops, program.reads
        self._bandwidth, self._flops = device.bandwidth_bytes_per_second, device.vector_flops_per_second
        self._cores = max(device.cores, 1)
        self._core_bandwidth = device.core_bytes_per_second
        self._shared_bytes, self._own_bytes = device.cache_bytes, _OWN_CACHE_BYTES * device.cores
        self.computes_operands = device.backend.products_compute_operands
        self.rows_in_one_kernel = device.backend.rows_in_one_kernel
        self.outputs = set(program.outputs)
        self.products: set[int] = set()
        self.live = reachable(program)
        self.users = readers_of(program, self.live)
        ops, self._singles = self.ops, singles
        self.single = {
            index: singles.of(op, [ops[read] for read in self.reads[index]], device)
            for index in self.live
            if (op := ops[index]).kind != "input"
        }
        self.left = set(self.single)
        self._opened: dict[int, FusedKernel] = {}
        self._readers: dict[int, set[int]] = {}

    @functools.cached_property
    def sizes(self) -> list[float]:
        return [float(op.size_bytes) for op in self.ops]

    @functools.cached_property
    def written(self) -> list[int]:
        return [written_bytes(self.program, index) for index in range(len(self.ops))]

    def kernel(self, index: int) -> FusedKernel:
        """The kernel that writes an operation's result."""
        kernel = self._opened.get(index)
        if kernel is None:
            kernel = self._opened[index] = self.single[index].kernel(index, self.reads[index])
        return kernel

    def is_opened(self, index: int) -> bool:
        """Whether a kernel may be another than its operation is by itself."""
        return index in self._opened

    def buffers(self, index: int) -> Collection[int]:
        """What a kernel reads."""
        if index in self._opened:
            return self._opened[index].reads
        operands, places = self.reads[index], self.single[index].operands
        return operands if len(places) == len(operands) else [operands[place] for place in places]

    def readers(self, index: int) -> Collection[int]:
        """The kernels that read an operation's result; each once."""
        return self._readers.get(index, self.users[index])

    def _own_readers(self, index: int) -> set[int]:
        if index not in self._readers:
            self._readers[index] = set(self.users[index])
        return self._readers[index]

    def time(self, root: int) -> None:
        """Works out what a kernel moves and takes."""
        kernel, written = self.kernel(root), Traffic(self.written[root], 0.0, 0.0)
        reads = [(buffer, 0.0, share) for buffer, share in kernel.reads.items()]
        kernel.traffic = self._with(written, reads, kernel.padding)
        kernel.seconds = self._seconds(kernel.work, kernel.traffic, kernel)

    def fuse(self, index: int) -> Collection[int]:
        """Fuses a producer into its readers; returns those."""
        producer, readers = self.kernel(index), self.readers(index)
        self.left.discard(index)
        for read in producer.reads:
            self._own_readers(read).discard(index)
        for reader in readers:
            kernel = self.kernel(reader)
            _merge(kernel, index, producer)
            kernel.inside |= producer.inside
            for read in producer.reads:
                self._own_readers(read).add(reader)
        return readers

    def make_inside_all(self, constants: Collection[int]) -> None:
        """All that reads something that reads nothing makes that itself."""
        readers: dict[int, list[int]] = collections.defaultdict(list)
        for index in constants:
            for reader in self.readers(index):
                readers[reader].append(index)
        for reader, made in readers.items():
            if reader in self._opened:
                for index in made:
                    _merge(self._opened[reader], index, self.kernel(index))
            else:
                self.single[reader] = self._making(reader, set(made))
        self.left.difference_update(constants)

    def _making(self, reader: int, made: set[int]) -> Single:
        inside = {place: self.single[read] for place, read in enumerate(self.reads[reader]) if read in made}
        return self._singles.without(self.single[reader], inside)

    def make_inside(self, index: int, product: int) -> None:
        """A product spreads a constant or a row itself; others read it as before."""
        kernel, spread = self.kernel(product), self.kernel(index)
        _merge(kernel, index, spread)
        for read in spread.reads:
            self._own_readers(read).add(product)
        self._own_readers(index).discard(product)
        if not self._readers[index] and index not in self.outputs:
            self.fuse(index)

    def written_for_scatter(self, index: int) -> tuple[int, ...]:
        """Of what a scatter reads, what is there before: what it writes into, and indices that are joined."""
        into, *others = self.reads[index]
        return into, *(read for read in others[:1] if self.ops[read].kind == "concatenate")

    def may_end_in_readers(self, index: int) -> bool:
        """Whether all readers of a reduction may ever run it: those that do more than change its result entry by entry
        never do, whatever else they run, unless it goes by rows as they do."""
        return self._runs(index).by_rows or all(self._runs(reader).is_unary for reader in self.readers(index))

    def _runs(self, index: int) -> FusedKernel | Single:
        """What tells what a kernel runs."""
        return self._opened.get(index) or self.single[index]

    def saved(self, index: int) -> float:
        """Seconds that fusing a producer into all its readers saves; 0 where one cannot take it. All are timed."""
        opened = self._opened
        producer = opened[index]
        saved, is_special = producer.seconds, producer.reduces or producer.padding
        for reader in self.readers(index):
            kernel = opened[reader]
            if (is_special or kernel.padding) and not _may_run(kernel, producer):
                return 0.0
            together = self._seconds_together(kernel, index, producer)
            if together is None:
                return 0.0
            saved += kernel.seconds - together
        return saved

    def _seconds_together(self, kernel: FusedKernel, index: int, producer: FusedKernel) -> float | None:
        """What a kernel takes that runs a producer of its own; None where it would read too many buffers."""
        reads, padding = kernel.reads, max(kernel.padding, producer.padding)
        if len(reads) - 1 + sum([read not in reads for read in producer.reads]) > _MOST_READS:
            return None
        share, changes = _changes(kernel, index, producer)
        traffic = self._with(kernel.traffic, [(index, reads[index], 0.0), *changes], padding)
        return self._seconds(kernel.work + share * producer.work, traffic, kernel, producer)

    def _with(self, traffic: Traffic, changes: Iterable[tuple[int, float, float]], padding: float) -> Traffic:
        """What a kernel moves that reads other shares of some buffers, each given as it was and as it is: from memory
        once, unless no cache holds it; rows that stay in a kernel, and all on devices without caches, in any case."""
        memory, shared, own = traffic
        in_place = padding or not self._shared_bytes
        for buffer, before, after in changes:
            size = self.sizes[buffer]
            memory += size * ((after if after < 1.0 else 1.0) - (before if before < 1.0 else 1.0))
            if in_place or (before <= 1.0 and after <= 1.0):
                continue
            again = size * ((after if after > 1.0 else 1.0) - (before if before > 1.0 else 1.0))
            if size < self._own_bytes:
                own += again
            elif size < self._shared_bytes:
                shared += again
            else:
                memory += again
        return Traffic(memory, shared, own)

    def _seconds(self, work: float, traffic: Traffic, *kernels: FusedKernel) -> float:
        """What kernels take that run as one: few blocks neither read nor compute as fast as all cores do."""
        padding = max([kernel.padding for kernel in kernels])
        memory, flops = self._bandwidth, self._flops
        shared, own = _SHARED_SPEEDUP * memory, _SHARED_SPEEDUP * _OWN_SPEEDUP * memory
        blocks = min([kernel.blocks for kernel in kernels])
        if not padding and blocks < math.inf:
            at_once = blocks * self._core_bandwidth
            memory, shared, own = min(memory, at_once), min(shared, at_once), min(own, at_once)
            flops *= min(blocks / self._cores, 1.0)
        moving = traffic.memory / memory + traffic.shared / shared + traffic.own / own
        return _overlapped(moving, work * (padding or 1.0) / flops)

    def merged(self, numbered: Sequence[int], size: int) -> tuple[Merged, ...]:
        """The kernels that are left of the first `size` of some operations, in the numbers that their places are."""
        number = {index: k for k, index in enumerate(numbered)}
        left = [(k, self.kernel(index)) for k, index in enumerate(numbered[:size]) if index in self.left]
        return tuple(
            Merged(
                root,
                sorted([k for index in kernel.inside if (k := number.get(index, size)) < size]),
                {number[read]: share for read, share in kernel.reads.items()},
                kernel.padding,
            )
            for root, kernel in left
        )

    def merge(self, numbered: Sequence[int], size: int, merged: Sequence[Merged]) -> None:
        """Leaves, of the first `size` of some operations, the kernels that were left of equal ones."""
        self.left.difference_update(numbered[:size])
        self.left.update([numbered[each.root] for each in merged])
        for root, members, reads, padding in merged:
            if len(members) > 1:
                inside = [self._inside(numbered[member]) for member in members]
                kernel = self.kernel(numbered[root])
                kernel.inside = set().union(*inside)
                kernel.reads = {numbered[read]: share for read, share in reads.items()}
                kernel.padding = padding

    def _inside(self, index: int) -> Collection[int]:
        """The operations that a kernel runs."""
        return self._opened[index].inside if index in self._opened else (index,)

    def fusion(self) -> Fusion:
        """The program with the kernels that are left."""
        left = [index for index in self.live if index in self.left]
        inside = {index: frozenset(self._inside(index)) for index in left}
        reads = {index: self._reads(index) for index in left}
        roots = self._order(inside, reads)
        return Fusion(
            self.program,
            roots,
            {index: reads[index] for index in roots},
            inside,
            self.users,
            custom=self._compiled_apart(inside),
        )

    def _reads(self, index: int) -> dict[int, float]:
        """How much a kernel reads of each buffer."""
        kernel = self._opened.get(index)
        return self.single[index].reads(self.reads[index]) if kernel is None else kernel.reads

    def _compiled_apart(self, inside: Mapping[int, frozenset[int]]) -> frozenset[int]:
        """Kernels that run a product, but for a library's, or by rows."""
        products = {index for index in self.live if self.ops[index].kind == "dot" and not self.ops[index].in_library}
        opened = self._opened
        return frozenset(
            index
            for index, run in inside.items()
            if (index in opened and opened[index].padding > 0) or not products.isdisjoint(run)
        )

    def _order(self, inside: Mapping[int, frozenset[int]], reads: Mapping[int, Mapping[int, float]]) -> tuple[int, ...]:
        """The kernels in program order; products and sums stand where they are made, whatever they do to their results,
        unless that reads something else that is made later."""
        place: dict[int, int] = {}
        heroes = {index for index in self.live if self.ops[index].kind in _HEROES}
        for index, run in inside.items():
            place[index] = index
            if not heroes.isdisjoint(run):
                place[index] = max((*(heroes & run), *[place.get(read, read) for read in reads[index]]))
        return tuple(index for _, index in sorted(zip(place.values(), place)))


def _overlapped(memory: float, arithmetic: float) -> float:
    return _LAUNCH_SECONDS + arithmetic + memory - _OVERLAP * (arithmetic if arithmetic < memory else memory)


def _changes(kernel: FusedKernel, index: int, producer: FusedKernel) -> tuple[float, list[tuple[int, float, float]]]:
    """(How much a kernel runs of a producer of its own; of which buffers it reads more then, each with how much it
    reads without and with the producer): once what it reads where it computes an entry."""
    reads, share = kernel.reads, kernel.reads[index]
    if kernel.padding or producer.padding:
        share = min(share, 1.0)
    elsewhere = _elsewhere(kernel, index, producer)
    changes = []
    for read, part in producer.reads.items():
        before, part = reads.get(read, 0.0), share * part
        if read in elsewhere:
            part += before
        if part > before or read not in reads:
            changes.append((read, before, part))
    return share, changes


def _elsewhere(kernel: FusedKernel, index: int, producer: FusedKernel) -> set[int]:
    """What a kernel that runs a producer reads not only where it computes an entry (`FusionCalculateUtilizations`)."""
    is_elsewhere = index in kernel.elsewhere or producer.reduces
    return kernel.elsewhere.union(producer.reads if is_elsewhere else producer.elsewhere)


def _may_run(kernel: FusedKernel, producer: FusedKernel) -> bool:
    """Whether a kernel can run a producer: with rows, only what runs by rows; what is reduced, only to its end."""
    if kernel.padding or producer.padding:
        return kernel.by_rows and producer.by_rows
    return kernel.is_unary or not producer.reduces


def _merge(kernel: FusedKernel, index: int, producer: FusedKernel) -> None:
    """Lets a kernel run a producer of its own instead of reading its result."""
    share, changes = _changes(kernel, index, producer)
    kernel.padding = max(kernel.padding, producer.padding)
    kernel.elsewhere = _elsewhere(kernel, index, producer) - {index}
    kernel.reads = {read: part for read, part in kernel.reads.items() if read != index}
    kernel.reads |= {read: part for read, _, part in changes}
    kernel.blocks = min(kernel.blocks, producer.blocks)
    kernel.work += share * producer.work
    kernel.by_rows &= producer.by_rows
    kernel.is_unary &= producer.is_unary
    kernel.reduces |= producer.reduces
