"""The time of a compiled program by roofline: a kernel takes as long as its arithmetic or its traffic, plus a launch.

Counted on the optimized HLO (`xla/hlo/ir/hlo_instruction.h`), so after all fusion, layout and rematerialization of the
compiler: the FLOPs of contractions and convolutions at the device's rate for their dtype, the bytes that a kernel reads
and writes at its bandwidth. Of a buffer that a kernel only slices or updates in place, the part that is touched counts.
A loop's kernels run as often as its trip count says. Copies over the link to the host's memory run beside the kernels,
one after another in either direction: they take what the schedule waits for them. Caches, occupancy and any other
overlap are left out.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from jaxremat.backends.devices import ROWS_APART, Device
from jaxremat.compiled.hlo_text import Array, HloModule, Instruction, parse_hlo
from jaxremat.compiled.link import Link, transfer_of

_FREE = frozenset(
    {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "opt-barrier", "async-update"}
)
_CALLERS = frozenset({"call", "async-start"})
_FUSIONS = frozenset({"fusion", "fusion-start"})
_SLICES = frozenset({"slice", "dynamic-slice", "gather"})
_VIEWS = frozenset({"bitcast", "reshape", "copy"})
_STEPS = ("stride", "lhs_dilate", "rhs_dilate")
_MATRIX_CALLS = re.compile(r'custom_call_target="[^"]*(?:gemm|matmul)')
_TILE = re.compile(r'"output_tiles":\[\{"sizes":\[([\d",]*)\]')
_CONVOLUTION_CALLS = re.compile(r'custom_call_target="__cudnn\$conv(\w*)')


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One kernel of a compiled program.

    Attributes:
      name: of its instruction.
      operation: the JAX operation that it comes from, with its name stack.
      source: "file.py:line", or empty.
      runs: how often it runs.
      moved_bytes: bytes that one run reads and writes.
      flops: of the contractions of one run.
      seconds: of all runs, by roofline.
    """

    name: str
    operation: str
    source: str
    runs: int
    moved_bytes: int
    flops: float
    seconds: float


@dataclasses.dataclass(frozen=True)
class Roofline:
    """The kernels of a compiled program, in order, and their sums over all runs."""

    kernels: tuple[Kernel, ...]

    @property
    def seconds(self) -> float:
        return sum(kernel.seconds for kernel in self.kernels)

    @property
    def flops(self) -> float:
        return sum(kernel.runs * kernel.flops for kernel in self.kernels)

    @property
    def moved_bytes(self) -> int:
        return sum(kernel.runs * kernel.moved_bytes for kernel in self.kernels)


def roofline(text: str, device: Device) -> Roofline:
    """The roofline of an optimized module on a device.

    Args:
      text: of the module, as `compiled.as_text()` returns it.
      device: whose rates count.
    """
    counter = _Counter(parse_hlo(text), device)
    return Roofline(tuple(counter.kernels(counter.module.entry, 1)))


class _Counter:
    def __init__(self, module: HloModule, device: Device) -> None:
        self.module, self.device = module, device

    def kernels(self, computation: str, runs: int) -> Iterator[Kernel]:
        """The kernels of a computation that runs so often; of a conditional, those of the slowest branch."""
        body = self.module.computations[computation]
        made = {instruction.name: instruction for instruction in body}
        link, now = Link(self.device.sustained_host_bytes_per_second), 0.0
        for instruction in body:
            for kernel in (*self._work(instruction, made, runs), *self._waiting(instruction, made, link, now, runs)):
                now += kernel.seconds / runs
                yield kernel

    def _work(self, instruction: Instruction, made: dict[str, Instruction], runs: int) -> Iterator[Kernel]:
        if instruction.opcode == "while":
            yield from self.kernels(_loop_body(instruction), runs * self.module.trip_count(instruction))
        elif instruction.opcode == "conditional":
            branches = [list(self.kernels(branch, runs)) for branch in instruction.called]
            yield from max(branches, key=lambda branch: sum(kernel.seconds for kernel in branch), default=[])
        elif instruction.opcode in _CALLERS and instruction.called:
            yield from self.kernels(instruction.called[0], runs)
        elif not _is_free(instruction, _operands(instruction, made)):
            yield self._kernel(instruction, made, runs)

    def _waiting(
        self, instruction: Instruction, made: dict[str, Instruction], link: Link, now: float, runs: int
    ) -> Iterator[Kernel]:
        """What an instruction waits for on the link to the host, as a kernel that moves nothing."""
        transfer = transfer_of(instruction, _operands(instruction, made))
        if transfer:
            link.begin(instruction.name, transfer, now)
        ended = instruction.operands if instruction.opcode.endswith("-done") else (instruction.name,)
        if transfer is None or not transfer.runs_beside:
            seconds = link.wait_for(ended, now)
            if seconds > 0:
                source = self.module.source(instruction)
                yield Kernel(instruction.name, instruction.operation, source, runs, 0, 0.0, runs * seconds)

    def _kernel(self, instruction: Instruction, made: dict[str, Instruction], runs: int) -> Kernel:
        work = list(self._contractions(instruction, made))
        arithmetic = sum(flops / self.device.matrix_flops_per_second[_rank(width)] for flops, width in work)
        moved = self._moved_bytes(instruction, made)
        bandwidth = self.device.bandwidth_bytes_per_second * (ROWS_APART if _has_rows_apart(instruction) else 1)
        seconds = max(arithmetic, moved / bandwidth) + self.device.launch_seconds
        source = self.module.source(instruction)
        flops = sum(flops for flops, _ in work)
        return Kernel(instruction.name, instruction.operation, source, runs, moved, flops, runs * seconds)

    def _contractions(self, instruction: Instruction, made: dict[str, Instruction]) -> Iterator[tuple[float, int]]:
        """Pairs (FLOPs, bytes per element of the wider operand) of all that an instruction contracts."""
        inside = self._inside(instruction)
        if inside is None:
            operands = _operands(instruction, made)
            flops = _contraction_flops(instruction, operands)
            if flops:
                yield flops, max(_element_bytes(operand.arrays) for operand in operands[:2])
            return
        local = {each.name: each for each in inside}
        for each in inside:
            yield from self._contractions(each, local)

    def _inside(self, instruction: Instruction) -> Sequence[Instruction] | None:
        """The instructions that a fusion runs, None for anything else."""
        if instruction.opcode not in _FUSIONS:
            return None
        return self.module.computations[instruction.called[0]]

    def _moved_bytes(self, instruction: Instruction, made: dict[str, Instruction]) -> int:
        operands = _operands(instruction, made)
        inside = self._inside(instruction)
        if inside is None:
            return _moved_alone(instruction, operands)
        uses = _uses(inside)
        parameters = {_parameter_number(each): each.name for each in inside if each.opcode == "parameter"}
        read = sum(
            min(_touched(parameters.get(position, ""), operand.size_bytes, uses), operand.size_bytes)
            for position, operand in enumerate(operands)
        )
        return read + _written(inside)


def _operands(instruction: Instruction, made: dict[str, Instruction]) -> list[Instruction]:
    return [made[name] for name in instruction.operands if name in made]


def _is_free(instruction: Instruction, operands: Sequence[Instruction]) -> bool:
    """Whether an instruction is no kernel: it gives a name, ends what has begun, or copies over the link."""
    gives_a_name = instruction.opcode in _FREE or instruction.opcode.endswith("-done")
    return gives_a_name or transfer_of(instruction, operands) is not None


def _has_rows_apart(instruction: Instruction) -> bool:
    """Whether a kernel by tiles, which a GPU's compiler chose, takes one row here and the next one far away."""
    found = _TILE.search(instruction.line)
    tile = [int(size) for size in re.findall(r"\d+", found[1])] if found else []
    partial = [axis for axis, (size, length) in enumerate(zip(tile, instruction.arrays[0].dims)) if size < length]
    return bool(partial) and tile[partial[-1]] == 1 and math.prod(tile[: partial[-1]]) > 1


def _loop_body(instruction: Instruction) -> str:
    return instruction.word("body").lstrip("%")


def _rank(width: int) -> int:
    return min(max(width, 1).bit_length() - 1, 3)


def _element_bytes(arrays: Iterable[Array]) -> int:
    return max((-(-array.size_bytes // array.elements) for array in arrays if array.elements), default=4)


def _parameter_number(instruction: Instruction) -> int:
    number = re.search(r"parameter\((\d+)\)", instruction.line)
    assert number, instruction.line
    return int(number[1])


def _uses(inside: Sequence[Instruction]) -> dict[str, list[tuple[Instruction, int]]]:
    """(reader, position) of each name that is read."""
    uses: dict[str, list[tuple[Instruction, int]]] = {}
    for each in inside:
        for position, name in enumerate(each.operands):
            uses.setdefault(name, []).append((each, position))
    return uses


def _touched(name: str, size_bytes: int, uses: dict[str, list[tuple[Instruction, int]]]) -> int:
    """Bytes that a fused kernel reads of a buffer: what it slices, nothing of what it updates in place."""
    touched = 0
    for reader, position in uses.get(name, ()):
        if reader.opcode in _SLICES and position == 0:
            touched += reader.size_bytes
        elif reader.opcode in _VIEWS:
            touched += _touched(reader.name, size_bytes, uses)
        elif not (reader.opcode in ("dynamic-update-slice", "scatter") and position == 0):
            touched += size_bytes
    return touched


def _written(inside: Sequence[Instruction]) -> int:
    """Bytes that a fusion writes: what its root makes, but of what is updated in place only the update."""
    local = {each.name: each for each in inside}
    updates = [each for each in inside if each.opcode == "dynamic-update-slice"]
    saved = sum(each.size_bytes - local[each.operands[1]].size_bytes for each in updates)
    return max(inside[-1].size_bytes - saved, 0)


def _moved_alone(instruction: Instruction, operands: Sequence[Instruction]) -> int:
    """Bytes that an instruction outside of fusions reads and writes."""
    if instruction.opcode in _SLICES:
        return instruction.size_bytes + sum(array.size_bytes for array in instruction.arrays)
    if instruction.opcode == "copy-start":  # its results are the copy, the source once more, and a token
        return _main_bytes(instruction.arrays[0]) + sum(operand.size_bytes for operand in operands)
    if instruction.opcode in ("dynamic-update-slice", "scatter"):
        return 2 * operands[-1 if instruction.opcode == "scatter" else 1].size_bytes
    made = instruction.arrays[:-1] if _has_workspace(instruction) else instruction.arrays
    return sum(map(_main_bytes, made)) + sum(operand.size_bytes for operand in operands)


def _has_workspace(instruction: Instruction) -> bool:
    """Whether the last result is the memory that a library works in, and not its work."""
    is_library = 'custom_call_target="__cu' in instruction.line
    last = instruction.arrays[-1]
    return is_library and len(instruction.arrays) > 1 and last.dtype in ("s8", "u8") and len(last.dims) == 1


def _main_bytes(array: Array) -> int:
    return 0 if array.in_vector_memory else array.size_bytes


def _contraction_flops(instruction: Instruction, operands: Sequence[Instruction]) -> float:
    if instruction.opcode == "dot" or _MATRIX_CALLS.search(instruction.line):
        contracted = instruction.numbers("lhs_contracting_dims") or instruction.numbers("lhs_contracting_dimensions")
        depth = math.prod(operands[0].arrays[0].dims[dim] for dim in contracted)
        return 2.0 * instruction.arrays[0].elements * depth
    if instruction.opcode == "convolution":
        return _window_flops(instruction, operands)
    cudnn = _CONVOLUTION_CALLS.search(instruction.line)
    return _library_flops(instruction, operands, cudnn[1]) if cudnn else 0.0


def _window_flops(instruction: Instruction, operands: Sequence[Instruction]) -> float:
    """Of a convolution, where its window meets entries: to a TPU, a product of many matrices is one with gaps, in which
    all windows but those of one matrix lie."""
    image, kernel, output = (operand.arrays[0].dims for operand in (*operands[:2], instruction))
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.line)
    assert labels, instruction.line
    window, meetings = _window(instruction.line), 1
    for axis in sorted(set(labels[1]) - set("bf")):
        entries, places = image[labels[1].index(axis)], output[labels[3].index(axis)]
        meetings *= _meetings(window, int(axis), entries, kernel[labels[2].index(axis)], places)
    rows, features = output[labels[3].index("b")], output[labels[3].index("f")]
    return 2.0 * rows * features * kernel[labels[2].index("i")] * meetings


def _meetings(window: dict[str, list[str]], axis: int, entries: int, taps: int, places: int) -> int:
    """How often, along an axis, a tap of the window meets an entry of the image."""
    stride, gap, spread = (int(window[key][axis]) if key in window else 1 for key in _STEPS)
    before = int(window["pad"][axis].split("_")[0]) if "pad" in window else 0
    at = np.arange(places)[:, None] * stride + np.arange(taps) * spread - before
    return int(np.count_nonzero((at >= 0) & (at <= (entries - 1) * gap) & (at % gap == 0)))


def _window(line: str) -> dict[str, list[str]]:
    """The sizes, strides, paddings and dilations of a window, one per axis."""
    found = re.search(r"window=\{([^}]*)\}", line)
    parts = (part.partition("=") for part in (found[1] if found else "").split())
    return {key: sizes.split("x") for key, _, sizes in parts}


def _library_flops(instruction: Instruction, operands: Sequence[Instruction], kind: str) -> float:
    """Twice the kernel's elements per output feature at every place of the convolution's output, whatever of image,
    kernel and output the instruction computes."""
    first, second, result = operands[0].arrays[0], operands[1].arrays[0], instruction.arrays[0]
    kernel, output = {"BackwardInput": (second, first), "BackwardFilter": (result, second)}.get(kind, (second, result))
    labels = re.search(r"dim_labels=\w+_(\w+)->", instruction.line)
    assert labels, instruction.line
    return 2.0 * output.elements * kernel.elements / max(kernel.dims[labels[1].index("o")], 1)
