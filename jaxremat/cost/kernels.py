"""The time of a program once it is compiled, predicted from its fusion: kernel by kernel, by roofline.

A kernel takes as long as its arithmetic or its traffic, plus a launch; it reads each of its buffers once, as do all
that run as one with it. What runs inside a loop's body is the body's own program.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Sequence, Set

import numpy as np

from jaxremat.backends.devices import ROWS_APART, Device
from jaxremat.base.compat import Jaxpr, Var
from jaxremat.cost.bodies import KnownBodies
from jaxremat.cost.fused import Fusion, share_read
from jaxremat.cost.fusion import fused
from jaxremat.cost.hlo_builder import HloProgram
from jaxremat.cost.hlo_ops import Op
from jaxremat.cost.row_tiles import has_rows_apart

_FREE = frozenset({"barrier", "fenced", "part", "bitcast", "input"})
_OVER_LINK = frozenset({"device_put", "copy"})  # beside kernels: what a schedule waits for them is counted apart
_UNPAID = _FREE | _OVER_LINK
_SLICES = frozenset({"slice", "dynamic_slice"})


def kernel_seconds(
    fusion: Fusion, groups: Iterable[Sequence[int]], device: Device, unwritten: Set[int] = frozenset()
) -> dict[int, float]:
    """Seconds of each kernel that runs, by the first of the operations whose results it makes; `groups`: of those that
    run as one; `unwritten`: those whose results nobody else reads."""
    paid = ([kernel for kernel in group if _is_paid(fusion.program.ops[kernel])] for group in groups)
    return {group[0]: _seconds(fusion, group, device, unwritten) for group in paid if group}


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


def _seconds(fusion: Fusion, group: list[int], device: Device, unwritten: Set[int] = frozenset()) -> float:
    ops = fusion.program.ops
    read = fusion.buffers_read[group[0]] if len(group) == 1 else _read_together(fusion, group)
    moved: float = sum([fusion.written_bytes(kernel) for kernel in group if kernel not in unwritten])
    moved += sum([ops[index].size_bytes * (share if share < 1.0 else 1.0) for index, share in read.items()])
    products = [index for kernel in group if kernel in fusion.products for index in fusion.products[kernel]]
    arithmetic = sum(ops[product].flops / _rate(fusion.program, product, device) for product in products)
    part = ROWS_APART if any(has_rows_apart(fusion, kernel) for kernel in group) else 1
    return max(arithmetic, moved / (part * device.bandwidth_bytes_per_second)) + device.launch_seconds


def _read_together(fusion: Fusion, group: list[int]) -> dict[int, float]:
    """How much kernels that run as one read of each buffer that none of them writes."""
    read: dict[int, float] = {}
    for kernel in group:
        for buffer, share in fusion.buffers_read[kernel].items():
            if buffer not in group:
                read[buffer] = max(read.get(buffer, 0.0), share)
    if any(0.0 < share < 1.0 for share in read.values()):
        needed = _needed_of_each(fusion, group)
        read = {buffer: max(share, needed[buffer]) if share else share for buffer, share in read.items()}
    return read


def _needed_of_each(fusion: Fusion, group: list[int]) -> dict[int, float]:
    """How much kernels that run as one need of what each reads, where they read different slices of it."""
    ops, needed = fusion.program.ops, collections.defaultdict[int, float](float, dict.fromkeys(group, 1.0))
    for index in sorted(frozenset[int]().union(*map(fusion.runs, group)), reverse=True):
        op, share = ops[index], min(needed[index], 1.0)
        for read in set(fusion.program.reads[index]):
            needed[read] += share * (share_read(op, ops[read]) if op.kind in _SLICES else 1.0)
    return needed


def _rate(program: HloProgram, product: int, device: Device) -> float:
    """FLOP/s of a contraction, by its wider operand."""
    operands = [program.ops[read] for read in program.reads[product][:2]]
    width = max(operand.size_bytes // max(operand.elements, 1) for operand in operands)
    return device.matrix_flops_per_second[min(max(width, 1).bit_length() - 1, 3)]
