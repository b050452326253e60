"""The memory of a compiled program, predicted from its jaxpr alone: fusion, order of execution, buffers in place."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence, Set

import numpy as np

from jaxremat.backends.devices import Device
from jaxremat.base.compat import Jaxpr
from jaxremat.base.remembering import while_alive
from jaxremat.cost.bodies import KnownBodies
from jaxremat.cost.fused import Fusion, other_name
from jaxremat.cost.fusion import fuse
from jaxremat.cost.heap import Span, beside_outputs, heap_bytes
from jaxremat.cost.hlo_builder import HloProgram
from jaxremat.cost.hlo_model import lower_body, lower_listing
from jaxremat.cost.hlo_ops import SCATTERS, Computation, Op, alone
from jaxremat.cost.hlo_rewrites import rewritten
from jaxremat.cost.joined import run_as_one
from jaxremat.cost.kernels import kernel_seconds
from jaxremat.cost.run_orders import Kernels, Order, flat, run_orders, takes_smallest
from jaxremat.trace import jaxpr as jaxprs
from jaxremat.trace.listing import Listing

_UPDATES = SCATTERS | {"dynamic_update_slice", "select_and_scatter_add"}


@dataclasses.dataclass(frozen=True, eq=False)
class MemoryEstimate:
    """Predicted bytes of a compiled program.

    Attributes:
      argument_bytes, output_bytes: of the program's inputs and outputs.
      steps: [T] the equation whose kernel runs at each step.
      workspace_bytes: [T] bytes that the loop body or branch that runs at each step needs.
      gap_bytes: how much further the heap reaches than what is live at once, since buffers lie apart.
      live_bytes: [T] intermediate bytes that are live at each step, workspace included.
      seconds: of one run, by the roofline of its kernels.
      spans: [S, 4] one row (equation, bytes, first step, last step) per intermediate buffer; equation -1 is a constant.
    """

    argument_bytes: int
    output_bytes: int
    steps: np.ndarray
    workspace_bytes: np.ndarray
    gap_bytes: int
    seconds: float
    spans: np.ndarray

    @property
    def live_bytes(self) -> np.ndarray:
        return live_bytes(self.spans[:, 1], self.spans, self.workspace_bytes)

    @property
    def temp_bytes(self) -> int:
        """The largest sum of live intermediate buffers, and the gaps between them."""
        return int(self.live_bytes.max(initial=0)) + self.gap_bytes

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
    body, known = alone(jaxpr), known or KnownBodies()
    return _estimate(lower_body(body, device.backend, known.templates), body, device, known, aliased)


def estimate_body(body: Computation, device: Device, known: KnownBodies) -> MemoryEstimate:
    """The same for what a loop or a branch runs; what it writes into stacks is no part of it."""
    return _estimate(lower_body(body, device.backend, known.templates), body, device, known, None)


def estimate_listing(
    listing: Listing,
    like: Jaxpr,
    device: Device,
    known: KnownBodies,
    aliased: frozenset[int] | None = frozenset(),
    shared: int = 0,
) -> MemoryEstimate:
    """The same for a program that was put together from equations; `like`: one that takes and gives the same;
    `aliased`: None in a loop's body, whose outputs' buffers are the loop's; `shared`: how many of its first lines other
    programs may begin with, too."""
    program = lower_listing(listing, device.backend, known.templates, shared, known.begun)
    return _estimate(program, alone(like), device, known, aliased)


def _estimate(
    program: HloProgram, body: Computation, device: Device, known: KnownBodies, aliased: Set[int] | None
) -> MemoryEstimate:
    fusion = fuse(rewritten(program, device, known.templates), device, known)
    kernels = Kernels(fusion, run_as_one(fusion, device), device.backend)
    orders = run_orders(kernels, body, device.backend)
    seconds = sum(kernel_seconds(fusion, kernels.groups, device, kernels.unwritten).values())
    choices = [_Run(kernels, order, body, device, known, aliased) for order in orders]
    taken = min if takes_smallest(body, device.backend) else max
    return taken(choices, key=lambda run: run.most_live_bytes).estimate(seconds)


class _Run:
    """A program whose kernels run in one order.

    Args:
      kernels: of the program.
      groups: the order.
      body: what was lowered.
      device: what it is compiled for.
      known: bodies of loops whose memory is known already.
      aliased: as in `estimate_memory`; None in a loop's body.
    """

    def __init__(
        self,
        kernels: Kernels,
        groups: Order,
        body: Computation,
        device: Device,
        known: KnownBodies,
        aliased: Set[int] | None,
    ) -> None:
        self._program, self._body, self._device, self._known = kernels.fusion.program, body, device, known
        self._order, self._by_library = flat(groups), kernels.fusion.by_library
        self._buffers = buffers = _Buffers(kernels, groups, is_body=aliased is None)
        own = sorted(buffers.spans(), key=lambda span: kernels.place_found[span[0]])
        returned = [] if aliased is None else buffers.outputs(aliased)
        own, returned = (_laid_out(spans, self._program.ops, device.backend.tile) for spans in (own, returned))
        self._spans = beside_outputs(_in_main_memory(own, len(self._order), device.vector_memory_bytes), returned)

    def estimate(self, seconds: float) -> MemoryEstimate:
        """What it takes, where all kernels take some seconds, but for what runs inside loops and branches."""
        equations = self._program.equations
        rows = [(equations[kernel], size, first, last) for kernel, size, first, last in self._spans]
        argument_bytes, output_bytes = _given_and_returned_bytes(self._body.jaxpr)
        in_bodies = sum(_inside(self._program.ops[self._order[step]], each) for step, each in self._bodies.items())
        return MemoryEstimate(
            argument_bytes=argument_bytes,
            output_bytes=output_bytes,
            steps=np.asarray([equations[kernel] for kernel in self._order], np.int64),
            workspace_bytes=self._workspace_bytes,
            gap_bytes=self._gap_bytes,
            seconds=seconds + in_bodies,
            spans=np.asarray(rows, np.int64).reshape(-1, 4),
        )

    @functools.cached_property
    def most_live_bytes(self) -> int:
        """The largest sum of buffers that are live at once."""
        spans = np.asarray(self._spans, np.int64).reshape(-1, 4)
        return int(live_bytes(spans[:, 1], spans, self._workspace_bytes).max(initial=0))

    @property
    def _gap_bytes(self) -> int:
        at_work = np.flatnonzero(self._workspace_bytes).tolist()
        workspaces = [(-1, int(self._workspace_bytes[step]), step, step) for step in at_work]
        live_bytes = self.most_live_bytes
        return heap_bytes([*self._spans, *workspaces], self._buffers.taken_by, live_bytes) - live_bytes

    @functools.cached_property
    def _workspace_bytes(self) -> np.ndarray:
        """[T] bytes that the loop body, the branch or the library that runs at each step needs."""
        workspace_bytes = np.zeros(len(self._order), np.int64)
        workspace_bytes[list(self._bodies)] = [max(each.temp_bytes for each in run) for run in self._bodies.values()]
        if self._device.backend.library_products:
            multiplies = {kernel for kernel, kind in self._by_library.items() if kind == "dot"}
            workspace_bytes[[kernel in multiplies for kernel in self._order]] = self._device.product_workspace_bytes
        return workspace_bytes

    @functools.cached_property
    def _bodies(self) -> dict[int, list[MemoryEstimate]]:
        """The loop's bodies, or the branches, that run at a step."""
        inside = functools.partial(estimate_body, device=self._device, known=self._known)
        each = ((step, self._program.ops[kernel].bodies) for step, kernel in enumerate(self._order))
        return {step: [self._known.once("memory", body, inside) for body in bodies] for step, bodies in each if bodies}


@while_alive
def _given_and_returned_bytes(jaxpr: Jaxpr) -> tuple[int, int]:
    given, returned = (sum(map(jaxprs.size_bytes, atoms)) for atoms in (jaxpr.invars, jaxpr.outvars))
    return given, returned


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


class _Buffers:
    """Who lies where, and until when.

    Attributes:
      starts, ends: the first and the last of the steps at which each kernel runs: of all that run as one with it.
      home: for each kernel, the one whose buffer its result is in.
      last: for each buffer, the last step that reads it.
      end: the same, but one less where what is written then takes its place.
      returned: buffers that the program returns.
      elsewhere: of a loop's body, buffers that lie in one of those all their lives.
      taken_by: of buffers, who writes over them.
    """

    def __init__(self, kernels: Kernels, groups: Order, *, is_body: bool) -> None:
        self.fusion, self.ops = kernels.fusion, kernels.fusion.program.ops
        self.order = flat(groups)
        self.starts: dict[int, int] = {}
        self.ends: dict[int, int] = {}
        for group in groups:
            start = len(self.starts)
            self.starts |= dict.fromkeys(group, start)
            self.ends |= dict.fromkeys(group, start + len(group) - 1)
        self.home = {kernel: _names(self.fusion, kernel)[-1] for kernel in self.order}
        self._into_fresh = kernels.into_fresh
        self.last = self._last_reads()
        self.end = dict(self.last)
        self.returned = {self.home.get(output, output) for output in self.fusion.program.outputs}
        self.elsewhere: set[int] = set()
        self._is_body, self._in_tuples, self._unwritten = is_body, kernels.in_tuples, kernels.unwritten
        self.taken_by: dict[int, int] = {}
        for kernel in self.order:
            if self.home[kernel] == kernel:
                self._write_over(kernel)

    def _last_reads(self) -> dict[int, int]:
        home, last, program = self.home, dict(self.ends), self.fusion.program
        for kernel, step in self.ends.items():
            for buffer in self.fusion.buffers_read[kernel]:
                if kernel not in self._into_fresh or buffer != program.reads[kernel][0]:
                    last[home.get(buffer, buffer)] = step  # steps only grow
        for kernel in self.order:
            last[home[kernel]] = max(last.get(home[kernel], 0), last[kernel])
        return last

    def _write_over(self, kernel: int) -> None:
        """Lets a kernel write over something that it reads last, if it can."""
        reads = self.fusion.buffers_read[kernel]
        given_up = [read for read in reads if self._is_given_up(self.home.get(read, read), kernel)]
        for read in sorted(given_up, key=lambda read: self.home.get(read, read)):
            if _writes_over(self.fusion, kernel, read) and not self._lies_in_a_tuple(read):
                buffer = self.home.get(read, read)
                self.taken_by[buffer] = kernel
                self.end[buffer] = self.starts[kernel] - 1
                if self._is_body and (kernel in self.returned or kernel in self.elsewhere):
                    self.elsewhere.add(buffer)
                return

    def _is_given_up(self, buffer: int, kernel: int) -> bool:
        """Whether a buffer is read for the last time, and as large as what a kernel writes."""
        same = buffer in self.starts and self.ops[buffer].size_bytes == self.ops[kernel].size_bytes
        unread = same and self.last[buffer] == self.ends[kernel]
        return unread and buffer not in self.taken_by and buffer not in self.returned

    def _lies_in_a_tuple(self, kernel: int) -> bool:
        """Whether a result is one of several of a kernel, a loop or a branch: nobody writes over those
        (heap_simulator.cc lets only direct users of what made a buffer share it)."""
        names = _names(self.fusion, kernel)
        return any(name in self._in_tuples or self.ops[name].kind == "part" for name in names)

    def spans(self) -> list[Span]:
        here = [kernel for kernel in self.order if self.home[kernel] == kernel and kernel not in self._unwritten]
        own = [kernel for kernel in here if kernel not in self.returned and kernel not in self.elsewhere]
        return [*self._unread(), *map(self._span, own)]

    def _unread(self) -> list[Span]:
        """Results that are written beside others, and that nobody reads."""
        sizes = ((kernel, self.ops[kernel].unread_bytes) for kernel in self.order)
        return [(kernel, size, self.starts[kernel], self.ends[kernel]) for kernel, size in sizes if size]

    def outputs(self, aliased: Set[int]) -> list[Span]:
        """The same of what the program returns, until its end; those aside that take over the buffers of inputs."""
        outputs = [out for k, out in enumerate(self.fusion.program.outputs) if out in self.home and k not in aliased]
        made = dict.fromkeys(self.home[out] for out in outputs)
        return [(*self._span(kernel)[:3], len(self.order)) for kernel in made]

    def _span(self, kernel: int) -> Span:
        op = self.ops[kernel]
        start = self.starts[self._written_by(kernel)]
        return kernel, op.size_bytes, start, max(self.end[kernel], start)

    def _written_by(self, kernel: int) -> int:
        """The kernel that writes into a result's buffer first. What a scatter writes into and leaves to others is
        copied for it, by the kernel that made it where that is a loop (`copy_insertion.cc`, `copy_fusion.cc`)."""
        kind, into = self.ops[kernel].kind, next(iter(self.fusion.program.reads[kernel]), kernel)
        if kind == "part":
            return into
        copies = kind in SCATTERS and kernel not in self._into_fresh and into in self.starts
        is_left = copies and self.taken_by.get(self.home[into]) != kernel
        return into if is_left and self.fusion.is_elementwise(into) else kernel


def _laid_out(spans: list[Span], ops: Sequence[Op], tile: tuple[int, int] | None) -> list[Span]:
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


def _in_main_memory(spans: list[Span], number: int, vector_memory_bytes: int) -> list[Span]:
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
    program = fusion.program
    updates = program.ops[kernel].kind in _UPDATES
    return program.reads[kernel][0] == buffer if updates else fusion.is_elementwise_on(kernel, buffer)


def _names(fusion: Fusion, kernel: int) -> list[int]:
    """A kernel, and what its result is another name of, up to the one whose buffer it is."""
    names = [kernel]
    while (named := _buffer_before(fusion, names[-1])) is not None:
        names.append(named)
    return names


def _buffer_before(fusion: Fusion, kernel: int) -> int | None:
    """Whose buffer a result is in: by another name, or since it takes it over."""
    taken = fusion.program.takes_over.get(kernel)
    return taken if taken in fusion.buffers_read else other_name(fusion, kernel)
