"""XLA:GPU's priority fusion, replayed on a program: what saves most time is fused first, while anything is saved.

A producer is fused into all kernels that read it, or into none: its result is then never written, and its work is done
in each of them. What that saves is the time of the kernels before, less their time after. Before that, products take
what they alone read and what alone reads them, and diamonds become kernels over rows: those run in tiles of whole rows,
so what they reduce can be read again in the same kernel, and what is fused with them must run so, too. (openxla/xla:
`priority_fusion.cc`, `softmax_rewriter_triton.cc`.)
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterator

from jaxremat.backends.devices import Device
from jaxremat.cost.diamonds import Diamond, diamonds
from jaxremat.cost.fused import Fusion, written_bytes
from jaxremat.cost.fused_before import FusedBefore, Islands
from jaxremat.cost.gemm_fusion import fuse_products
from jaxremat.cost.hlo_builder import HloProgram
from jaxremat.cost.hlo_ops import SCATTERS
from jaxremat.cost.kernel_graph import CONSUMERS, PRODUCERS, KernelGraph

_FUSIBLE = PRODUCERS | {"reduce"}


def fuse_by_priority(program: HloProgram, device: Device, before: FusedBefore) -> Fusion:
    """Decides which operations of a program write buffers on a GPU; `before`: what was fused before on the device."""
    graph = KernelGraph(program, device, before.singles)
    fuse_products(graph)
    for diamond in diamonds(program, graph.users) if graph.rows_in_one_kernel else ():
        _as_one(graph, diamond)
    fusible = _fusible(graph)
    constants = {index for index in fusible if not graph.reads[index]}
    graph.make_inside_all(constants)
    fusible -= constants
    for island in _islands(graph, fusible):
        _fuse_island(graph, island, fusible, before.islands)
    return graph.fusion()


def _fusible(graph: KernelGraph) -> set[int]:
    """Producers that only kernels read which can take them, and nobody else asks for. Those that read nothing are fused
    before others: whatever else is fused, that moves fewer bytes, and they would tie all that reads a number to one
    another."""
    ops, takers = graph.ops, graph.products if graph.computes_operands else ()
    read_by_others = set(graph.outputs)
    for index in graph.left:
        if not (index in takers or (ops[index].kind in CONSUMERS and index not in graph.products)):
            read_by_others.update(graph.buffers(index))
        elif ops[index].kind in SCATTERS:
            read_by_others.update(graph.written_for_scatter(index))
    found = {index for index in graph.left if ops[index].kind in _FUSIBLE and not ops[index].turns_rows}
    found -= graph.products | read_by_others
    return {index for index in found if ops[index].kind != "reduce" or graph.may_end_in_readers(index)}


def _islands(graph: KernelGraph, fusible: set[int]) -> Iterator[list[int]]:
    """The kernels that may become one, directly or by way of others, in program order."""
    seen: set[int] = set()
    for start in fusible:
        if start not in seen:
            island, waiting = {start}, [start]
            while waiting:
                index = waiting.pop()
                near = [read for read in graph.buffers(index) if read in fusible]
                for each in (*near, *graph.readers(index)) if index in fusible else near:
                    if each not in island:
                        island.add(each)
                        waiting.append(each)
            seen |= island
            yield sorted(island)


def _fuse_island(graph: KernelGraph, island: list[int], fusible: set[int], islands: Islands) -> None:
    """Fuses an island, as an equal one was if there was any."""
    facts, numbered = _facts(graph, island, fusible)
    known = islands.get(facts)
    if known is None:
        _fuse_where_that_saves(graph, island, fusible)
        islands[facts] = graph.merged(numbered, len(island))
    else:
        graph.merge(numbered, len(island), known)


def _facts(graph: KernelGraph, island: list[int], fusible: set[int]) -> tuple[Hashable, list[int]]:
    """(what decides how an island is fused, in numbers of its own; the operations of those numbers, its own first)."""
    number = {index: k for k, index in enumerate(island)}
    facts: list[Hashable] = [index in fusible for index in island]
    for index in island:
        facts.append(_opened_facts(graph, index) if graph.is_opened(index) else graph.single[index].number)
        facts += [number.setdefault(read, len(number)) for read in graph.buffers(index)]
    return tuple(facts), list(number)


def _opened_facts(graph: KernelGraph, index: int) -> Hashable:
    """What decides how a kernel is fused to which something has been done."""
    kernel = graph.kernel(index)
    runs = kernel.work, kernel.by_rows, kernel.is_unary, kernel.reduces, kernel.padding, kernel.blocks
    sizes = [(graph.ops[each].size_bytes, graph.ops[each].elements) for each in (index, *kernel.reads)]
    elsewhere = [read in kernel.elsewhere for read in kernel.reads]
    return written_bytes(graph.program, index), *runs, *kernel.reads.values(), *sizes, *elsewhere


def _fuse_where_that_saves(graph: KernelGraph, island: list[int], fusible: set[int]) -> None:
    """Fuses what saves most, again and again, while something saves time."""
    for index in island:
        graph.time(index)
    gains = {index: gain for index in island if index in fusible and (gain := graph.saved(index)) > 0}
    queue = [(-gain, index) for index, gain in gains.items()]
    heapq.heapify(queue)
    while queue:
        expected, index = heapq.heappop(queue)
        if gains.get(index) != -expected:
            continue  # no longer so: what it is now stands elsewhere in the queue
        del gains[index]
        readers = graph.fuse(index)
        for reader in readers:
            graph.time(reader)
        affected = set(readers).union(*(graph.buffers(reader) for reader in readers))
        for neighbour in affected & fusible:
            gain = graph.saved(neighbour)
            if gain > 0 and gain != gains.get(neighbour):
                heapq.heappush(queue, (-gain, neighbour))
            gains[neighbour] = gain


def _as_one(graph: KernelGraph, diamond: Diamond) -> None:
    """One kernel over rows, which reads every buffer once."""
    if diamond.inside | {diamond.root} <= graph.left:
        row = graph.ops[diamond.root].shape[-1]
        graph.kernel(diamond.root).padding = (1 << (row - 1).bit_length()) / row
        for index in sorted(diamond.inside, reverse=True):
            graph.fuse(index)
