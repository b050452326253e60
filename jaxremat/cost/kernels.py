"""The time of a program once it is compiled, predicted from its fusion: kernel by kernel, by roofline.

A kernel takes as long as its arithmetic or its traffic, plus a launch; it reads each of its buffers once. On a GPU,
loops and reductions over the same elements that read the same buffer, or one the other's result, run as one kernel,
unless that is a product's or made by rows; a reduction in few blocks computes nothing that is written, too
(`multi_output_fusion.cc`). An update in place is a kernel of its own. What runs inside a loop's body is the body's own
program.
"""

from __future__ import annotations

import collections
import itertools
import math
from collections.abc import Iterable, Set

import numpy as np

from jaxremat.backends.devices import Device
from jaxremat.base.compat import Jaxpr, Var
from jaxremat.cost.bodies import KnownBodies
from jaxremat.cost.fused import Fusion
from jaxremat.cost.fusion import fused
from jaxremat.cost.hlo_builder import HloProgram
from jaxremat.cost.hlo_ops import Op
from jaxremat.cost.reductions import blocks
from jaxremat.trace.primitives import ELEMENTWISE, MOVING

_LOOPS = (ELEMENTWISE | MOVING | {"reduce"}) - {"dynamic_update_slice"}
_FREE = frozenset({"barrier", "fenced", "part", "bitcast", "input"})
_OVER_LINK = frozenset({"device_put", "copy"})  # beside kernels: what a schedule waits for them is counted apart
_UNPAID = _FREE | _OVER_LINK


def kernel_seconds(fusion: Fusion, device: Device) -> dict[int, float]:
    """Seconds of each kernel that runs, by the first of the operations whose results it writes."""
    groups = _joined(fusion, device) if device.backend.element_work else [[kernel] for kernel in fusion.kernels]
    paid = ([kernel for kernel in group if _is_paid(fusion.program.ops[kernel])] for group in groups)
    return {group[0]: _seconds(fusion, group, device) for group in paid if group}


def seconds_by_equation(
    jaxpr: Jaxpr, device: Device, known: KnownBodies | None = None
) -> tuple[np.ndarray, frozenset[Var]]:
    """What equations take where each kernel runs by itself, and which variables have buffers; `known`: what was worked
    out for the device before. What a GPU's product computes of its result, readers do as well: the product is what
    counts.

    Returns:
      ([E] seconds of the kernels that write an equation's results; zero where these are computed inside of others, the
      variables that are written to memory or name what is).
    """
    fusion = fused(jaxpr, device, known or KnownBodies())
    ops, seconds = fusion.program.ops, np.zeros(len(jaxpr.eqns))
    made_by = {kernel: _hero(fusion, kernel, device) for kernel in fusion.kernels}
    for kernel, hero in made_by.items():
        if _is_paid(ops[kernel]):
            seconds[fusion.program.equations[hero]] += _seconds(fusion, [kernel], device)
    buffers = set(made_by.values()) | {index for index, op in enumerate(ops) if op.kind == "input"}
    return seconds, frozenset(var for var, index in fusion.program.op_of.items() if index in buffers)


def _hero(fusion: Fusion, kernel: int, device: Device) -> int:
    """The product of a kernel that runs one, where all else that it runs can as well be left to its readers."""
    products = [index for index in fusion.runs(kernel) if fusion.program.ops[index].kind == "dot"]
    return products[0] if len(products) == 1 and not device.backend.products_compute_operands else kernel


def seconds_again(jaxpr: Jaxpr, seconds: np.ndarray, written: Set[Var], least: np.ndarray) -> np.ndarray:
    """What equations take to run again.

    Args:
      jaxpr, seconds, written: a program, and what `seconds_by_equation` says of it.
      least: [E] what each takes at least; nothing where a kernel computes it on its way, unless it never runs again.
    """
    on_the_way = np.asarray([written.isdisjoint(eqn.outvars) for eqn in jaxpr.eqns], bool) & np.isfinite(least)
    return np.where(on_the_way, seconds, np.maximum(seconds, least))


def _is_paid(op: Op) -> bool:
    """Whether an operation is a kernel of its own: what loops and branches take is in their bodies."""
    return op.kind not in _UNPAID and not op.bodies


def _seconds(fusion: Fusion, group: list[int], device: Device) -> float:
    ops = fusion.program.ops
    read = fusion.buffers_read[group[0]] if len(group) == 1 else _read_together(fusion, group)
    moved: float = sum(map(fusion.written_bytes, group))
    moved += sum([ops[index].size_bytes * (share if share < 1.0 else 1.0) for index, share in read.items()])
    products = [index for kernel in group if kernel in fusion.products for index in fusion.products[kernel]]
    arithmetic = sum(ops[product].flops / _rate(fusion.program, product, device) for product in products)
    return max(arithmetic, moved / device.bandwidth_bytes_per_second) + device.launch_seconds


def _read_together(fusion: Fusion, group: list[int]) -> dict[int, float]:
    """How much kernels that run as one read of each buffer that none of them writes."""
    read: dict[int, float] = {}
    for kernel in group:
        for buffer, share in fusion.buffers_read[kernel].items():
            if buffer not in group:
                read[buffer] = max(read.get(buffer, 0.0), share)
    return read


def _rate(program: HloProgram, product: int, device: Device) -> float:
    """FLOP/s of a contraction, by its wider operand."""
    operands = [program.ops[read] for read in program.reads[product][:2]]
    width = max(operand.size_bytes // max(operand.elements, 1) for operand in operands)
    return device.matrix_flops_per_second[min(max(width, 1).bit_length() - 1, 3)]


def _joined(fusion: Fusion, device: Device) -> Iterable[list[int]]:
    """The kernels that run as one."""
    joins = _Joins(fusion)
    for readers in joins.readers.values():
        for first, second in itertools.pairwise(sorted(readers, key=joins.level.__getitem__)):
            if joins.level[first] == joins.level[second]:
                joins.join(first, second)
    for buffer, readers in joins.readers.items():
        for reader in readers if buffer in joins.is_loop else ():
            if joins.level[reader] == joins.level[buffer] + 1 and not _reads_slowly(fusion, reader, device):
                joins.join(buffer, reader)
    groups: dict[int, list[int]] = collections.defaultdict(list)
    for kernel in fusion.kernels:
        groups[joins.leader(kernel)].append(kernel)
    return groups.values()


def _reads_slowly(fusion: Fusion, kernel: int, device: Device) -> bool:
    """Whether a kernel reduces in so few blocks that they read less than memory gives."""
    ops, reads = fusion.program.ops, fusion.program.reads
    reductions = fusion.reductions.get(kernel, ())
    at_once = min([blocks(ops[index], ops[reads[index][0]]) for index in reductions], default=math.inf)
    return at_once * device.core_bytes_per_second < device.bandwidth_bytes_per_second


class _Joins:
    """Kernels on their way to be joined.

    Attributes:
      level: the longest way from the inputs to each kernel: two of one level never wait for each other.
      elements: how many elements each kernel's loop goes through.
      is_loop: kernels that may be joined.
      readers: of each buffer, those of its readers that go through all of it.
    """

    def __init__(self, fusion: Fusion) -> None:
        ops = fusion.program.ops
        level = self.level = dict[int, int]()
        for kernel in fusion.kernels:
            level[kernel] = 1 + max([level.get(buffer, 0) for buffer in fusion.buffers_read[kernel]], default=0)
        loops = [kernel for kernel in fusion.kernels if ops[kernel].kind in _LOOPS and kernel not in fusion.custom]
        self.is_loop = {kernel for kernel in loops if kernel not in fusion.products}
        self.elements = {
            kernel: max([ops[index].elements for index in (kernel, *fusion.buffers_read[kernel])])
            for kernel in self.is_loop
        }
        self.readers: dict[int, list[int]] = collections.defaultdict(list)
        for kernel in fusion.kernels:
            for buffer in fusion.buffers_read[kernel].keys() - fusion.custom if kernel in self.is_loop else ():
                if ops[buffer].elements == self.elements[kernel]:
                    self.readers[buffer].append(kernel)
        reduce = fusion.reductions
        self._reduced = {kernel: {ops[kernel].shape} if kernel in reduce else set() for kernel in self.is_loop}
        self._leader = {kernel: kernel for kernel in fusion.kernels}

    def leader(self, kernel: int) -> int:
        while self._leader[kernel] != kernel:
            kernel = self._leader[kernel]
        return kernel

    def join(self, first: int, second: int) -> None:
        """Joins two kernels that go through as many elements and whose reductions, if any, are alike."""
        a, b = self.leader(first), self.leader(second)
        reduced = self._reduced[a] | self._reduced[b]
        if a != b and self.elements[a] == self.elements[b] and len(reduced) <= 1:
            self._leader[b], self._reduced[a] = a, reduced
