"""The memory of a compiled program, predicted from its jaxpr alone: fusion, order of execution, buffers in place."""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Sequence, Set

import numpy as np

from jaxremat.backends.devices import Device
from jaxremat.base.compat import Jaxpr
from jaxremat.cost.bodies import KnownBodies
from jaxremat.cost.fused import Fusion
from jaxremat.cost.fusion import fuse
from jaxremat.cost.hlo_model import CONTRACTIONS, Body, Op, alone, lower_body
from jaxremat.cost.kernels import kernel_seconds
from jaxremat.trace import jaxpr as jaxprs

_Span = tuple[int, int, int, int]  # kernel, bytes, first step, last step
_UPDATES = ("dynamic_update_slice", "scatter", "scatter-add")


@dataclasses.dataclass(frozen=True, eq=False)
class MemoryEstimate:
    """Predicted bytes of a compiled program.

    Attributes:
      argument_bytes, output_bytes: of the program's inputs and outputs.
      steps: [T] the equation whose kernel runs at each step.
      workspace_bytes: [T] bytes that the loop body or branch that runs at each step needs.
      live_bytes: [T] intermediate bytes that are live at each step, workspace included.
      seconds: of one run, by the roofline of its kernels.
      spans: [S, 4] one row (equation, bytes, first step, last step) per intermediate buffer; equation -1 is a constant.
    """

    argument_bytes: int
    output_bytes: int
    steps: np.ndarray
    workspace_bytes: np.ndarray
    seconds: float
    spans: np.ndarray

    @property
    def live_bytes(self) -> np.ndarray:
        return live_bytes(self.spans[:, 1], self.spans, self.workspace_bytes)

    @property
    def temp_bytes(self) -> int:
        """The largest sum of live intermediate buffers."""
        return int(self.live_bytes.max(initial=0))

    @property
    def peak_bytes(self) -> int:
        return self.argument_bytes + self.output_bytes + self.temp_bytes


def estimate_memory(
    jaxpr: Jaxpr, device: Device, known: KnownBodies | None = None, aliased: frozenset[int] = frozenset()
) -> MemoryEstimate:
    """Predicts the memory of a jaxpr compiled for a device.

    Args:
      jaxpr: the program.
      device: what it is compiled for.
      known: bodies of loops whose memory is known already.
      aliased: outputs that take over the buffers of donated inputs: nothing else waits there before they are made.
    """
    return estimate_body(alone(jaxpr), device, known or KnownBodies(), aliased)


def estimate_body(
    body: Body, device: Device, known: KnownBodies, aliased: frozenset[int] = frozenset()
) -> MemoryEstimate:
    """The same for what a loop or a branch runs; what it writes into stacks is no part of it."""
    backend = device.backend
    inside = functools.partial(estimate_body, device=device, known=known)
    fusion = fuse(lower_body(body, backend), device)
    order = _breadth_first(fusion) if backend.breadth_first else fusion.kernels
    if backend.stacked_products_last:
        order = _stacked_products_last(fusion, order, body.own_outputs)
    ops = fusion.program.ops
    spans = _laid_out(_buffer_spans(fusion, order, aliased), ops, backend.tile)
    buffers = _in_main_memory(spans, len(order), device.vector_memory_bytes)
    rows = [(ops[kernel].equation, size, first, last) for kernel, size, first, last in buffers]
    bodies = {k: [known.once("memory", inner, inside) for inner in ops[k].bodies] for k in order}
    return MemoryEstimate(
        argument_bytes=sum(map(jaxprs.size_bytes, body.jaxpr.invars)),
        output_bytes=sum(map(jaxprs.size_bytes, body.jaxpr.outvars)),
        steps=np.asarray([ops[kernel].equation for kernel in order], np.int64),
        workspace_bytes=np.asarray([max((b.temp_bytes for b in bodies[k]), default=0) for k in order], np.int64),
        seconds=sum(kernel_seconds(fusion, device).values()) + sum(_inside(ops[k], bodies[k]) for k in order),
        spans=np.asarray(rows, np.int64).reshape(-1, 4),
    )


def _inside(op: Op, bodies: Sequence[MemoryEstimate]) -> float:
    """Seconds of what runs inside a loop, all its trips, or inside a branch, the slowest."""
    seconds = [body.seconds for body in bodies]
    return max(seconds) if op.kind == "cond" else op.runs * sum(seconds)


def live_bytes(span_bytes: np.ndarray, spans: np.ndarray, workspace_bytes: np.ndarray) -> np.ndarray:
    """[T] bytes at each step, where spans (as in `MemoryEstimate`) hold `span_bytes` [S] and the steps themselves need
    `workspace_bytes` [T]."""
    change = np.zeros(workspace_bytes.size + 1, np.int64)
    np.add.at(change, spans[:, 2], span_bytes)
    np.add.at(change, spans[:, 3] + 1, -span_bytes)
    return np.cumsum(change[:-1]) + workspace_bytes


def _breadth_first(fusion: Fusion) -> tuple[int, ...]:
    """Kernels in the order of XLA:CPU's scheduler: first ready, first run."""
    readers: dict[int, list[int]] = collections.defaultdict(list)
    waiting = {}
    for kernel in fusion.kernels:
        buffers = [b for b in fusion.buffers_read[kernel] if b in fusion.buffers_read]
        waiting[kernel] = len(buffers)
        for buffer in buffers:
            readers[buffer].append(kernel)
    queue = collections.deque(kernel for kernel in fusion.kernels if not waiting[kernel])
    order = []
    while queue:
        order.append(queue.popleft())
        for reader in readers[order[-1]]:
            waiting[reader] -= 1
            if not waiting[reader]:
                queue.append(reader)
    return tuple(order)


def _stacked_products_last(fusion: Fusion, order: Sequence[int], own_outputs: int) -> tuple[int, ...]:
    """The order with contractions that no handed-on output needs, and what needs them, at the end."""
    needed, stack = set(), list(fusion.program.outputs[:own_outputs])
    while stack:
        kernel = stack.pop()
        if kernel not in needed:
            needed.add(kernel)
            stack.extend(fusion.buffers_read.get(kernel, ()))
    late: set[int] = set()
    for kernel in order:
        waits = not late.isdisjoint(fusion.buffers_read[kernel])
        if kernel not in needed and (waits or fusion.program.ops[kernel].kind in CONTRACTIONS):
            late.add(kernel)
    return (*(kernel for kernel in order if kernel not in late), *(kernel for kernel in order if kernel in late))


def _buffer_spans(fusion: Fusion, order: Sequence[int], aliased: Set[int]) -> list[_Span]:
    """Rows (kernel, bytes, first step, last step) of the intermediate buffers; not of outputs and inputs."""
    ops, outputs = fusion.program.ops, set(fusion.program.outputs)
    step_of = {kernel: step for step, kernel in enumerate(order)}
    home = {kernel: _renamed(fusion, kernel) for kernel in order}
    last = dict(step_of)
    for kernel in order:
        for buffer in fusion.buffers_read[kernel]:
            owner = home.get(buffer, buffer)
            last[owner] = max(last.get(owner, 0), step_of[kernel])
    for kernel in order:
        last[home[kernel]] = max(last.get(home[kernel], 0), last[kernel])
    returned = {home.get(output, output) for output in outputs}
    open_to_all = {home.get(output, output) for k, output in enumerate(fusion.program.outputs) if k not in aliased}
    start = {k: step_of[ops[k].reads[0]] if ops[k].kind == "part" else step_of[k] for k in order}
    spans: list[_Span] = []
    taken: set[int] = set()
    free: set[int] = set()
    end = dict(last)
    for kernel in order:
        if home[kernel] != kernel:
            continue
        for read in sorted(fusion.buffers_read[kernel], key=lambda read: home.get(read, read)):
            buffer = home.get(read, read)
            same = buffer in step_of and ops[buffer].size_bytes == ops[kernel].size_bytes
            given_up = same and buffer not in taken | returned and last[buffer] == step_of[kernel]
            if given_up and _writes_over(fusion, kernel, read) and not _lies_in_a_tuple(fusion, read):
                taken.add(buffer)
                end[buffer] = step_of[kernel] - 1
                if kernel in open_to_all | free:
                    free.add(buffer)
                break
    for kernel in order:
        if home[kernel] == kernel and kernel not in returned and kernel not in free:
            spans.append((kernel, ops[kernel].size_bytes, start[kernel], max(end[kernel], start[kernel])))
    return spans


def _laid_out(spans: list[_Span], ops: Sequence[Op], tile: tuple[int, int] | None) -> list[_Span]:
    """The spans with what fills up their tiles, where arrays lie in tiles: in the layout that needs least."""
    if tile is None:
        return spans
    return [(kernel, _filled_up(size, ops[kernel].shape, tile), start, end) for kernel, size, start, end in spans]


@functools.cache
def _filled_up(size_bytes: int, shape: tuple[int, ...], tile: tuple[int, int]) -> int:
    if len(shape) < 2:
        return size_bytes
    rows, columns = (np.asarray([-(-n // side) * side / max(n, 1) for n in shape]) for side in tile)
    waste = np.outer(rows, columns)
    return int(size_bytes * waste[~np.eye(len(shape), dtype=bool)].min())


def _in_main_memory(spans: list[_Span], number: int, vector_memory_bytes: int) -> list[_Span]:
    """The spans that do not fit beside main memory for all their life; the shortest lives are placed there first."""
    if not vector_memory_bytes:
        return spans
    used = np.zeros(number, np.int64)
    beyond = []
    for span in sorted(spans, key=lambda span: span[3] - span[2]):
        _, size, first, last = span
        if used[first : last + 1].max(initial=0) + size <= vector_memory_bytes:
            used[first : last + 1] += size
        else:
            beyond.append(span)
    return beyond


def _writes_over(fusion: Fusion, kernel: int, buffer: int) -> bool:
    """Whether a kernel's result may take the place of a buffer that it reads."""
    op = fusion.program.ops[kernel]
    return op.reads[0] == buffer if op.kind in _UPDATES else fusion.is_elementwise_on(kernel, buffer)


def _renamed(fusion: Fusion, kernel: int) -> int:
    """The buffer that a kernel's result names: what was fenced or viewed under another shape, or its own."""
    return _names(fusion, kernel)[-1]


def _lies_in_a_tuple(fusion: Fusion, kernel: int) -> bool:
    """Whether a result is one of several of a loop or a branch: nobody writes over those (heap_simulator.cc lets only
    direct users of what made a buffer share it)."""
    return any(fusion.program.ops[name].kind == "part" for name in _names(fusion, kernel))


def _names(fusion: Fusion, kernel: int) -> list[int]:
    """A kernel, and what its result is another name of, up to the one whose buffer it is."""
    ops, names = fusion.program.ops, [kernel]
    while True:
        op = ops[kernel]
        if op.kind == "fenced":
            kernel = op.reads[1]
        elif op.takes_over in fusion.buffers_read:
            kernel = op.takes_over
        elif op.kind == "bitcast" and fusion.buffers_read.get(kernel, {}).keys() == set(op.reads):
            kernel = op.reads[0]
        else:
            return names
        names.append(kernel)
