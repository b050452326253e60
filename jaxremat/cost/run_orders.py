"""In which order compilers run the kernels of a program."""

from __future__ import annotations

import collections
import functools
import heapq
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from jaxremat.backends.backend import Backend
from jaxremat.cost.fused import Fusion, value_of
from jaxremat.cost.hlo_ops import SCATTERS, Computation

Order = list[tuple[int, ...]]
"""Kernels in the order in which they run, those together that run as one."""

_FIRST = -math.inf


def run_orders(kernels: Kernels, body: Computation, backend: Backend) -> list[Order]:
    """The orders in which a compiler may run the kernels; of a loop's body nobody knows which it takes."""
    if backend.breadth_first:
        return [kernels.breadth_first()]
    if takes_smallest(body, backend):
        return [ByFreedBytes(kernels).order(), kernels.by_readers()]
    return [kernels.as_written(), *([kernels.depth_first()] if backend.reorders_iterations and body.has_stacks else ())]


def takes_smallest(body: Computation, backend: Backend) -> bool:
    """Whether a compiler takes, of `run_orders`, the first one that needs the fewest bytes (`DefaultMemoryScheduler` in
    `hlo_memory_scheduler.cc`)."""
    return backend.frees_first and not body.has_stacks


def flat(order: Order) -> list[int]:
    """The kernels one by one."""
    return [kernel for group in order for kernel in group]


class Kernels:
    """A fused program as a graph of what runs at once.

    Attributes:
      groups: the kernels that run as one, in numbers of the program's operations; of such that wait for each other by
        way of others, every kernel by itself.
      waits_for: for each group, the groups whose results it reads, in the order in which it does.
      readers: for each group, those that read its results.
      unwritten: kernels whose result only those read that run as one with them.
      in_tuples: kernels whose result is one of several of what makes it.
      into_fresh: scatters for each of which the constant that it writes into is written alone, right before.
    """

    def __init__(self, fusion: Fusion, groups: Sequence[tuple[int, ...]], backend: Backend) -> None:
        self.fusion = fusion
        self._connect(groups)
        if stuck := self._waiting_for_each_other():
            alone = ([(kernel,) for kernel in group] if k in stuck else [group] for k, group in enumerate(groups))
            self._connect(list(itertools.chain.from_iterable(alone)))
        self.unwritten = self._read_inside_alone()
        written = ([kernel for kernel in group if kernel not in self.unwritten] for group in self.groups)
        self.in_tuples = {kernel for several in written if len(several) > 1 for kernel in several}
        self.in_tuples |= fusion.by_library.keys() if backend.returns_workspace else set()
        ops, reads = fusion.program.ops, fusion.program.reads
        scatters = [kernel for kernel in fusion.kernels if ops[kernel].kind in SCATTERS]
        large = [kernel for kernel in scatters if ops[kernel].size_bytes >= backend.written_again_bytes]
        self.into_fresh = {kernel for kernel in large if not reads[reads[kernel][0]]}

    def _connect(self, groups: Sequence[tuple[int, ...]]) -> None:
        self.groups, reads = groups, self.fusion.buffers_read
        self.group_of = {kernel: k for k, group in enumerate(groups) for kernel in group}
        self.waits_for = [
            self._groups_of(itertools.chain.from_iterable(reads[kernel] for kernel in group), k)
            for k, group in enumerate(groups)
        ]
        self.readers: list[list[int]] = [[] for _ in groups]
        for k, waits in enumerate(self.waits_for):
            for each in waits:
                self.readers[each].append(k)

    def _read_inside_alone(self) -> set[int]:
        """Kernels that others read, none of which runs apart from them."""
        inside, elsewhere = set[int](), {*self.fusion.program.outputs}
        for reader, read in self.fusion.buffers_read.items():
            group = self.group_of.get(reader)
            for buffer in read:
                (inside if group is not None and self.group_of.get(buffer) == group else elsewhere).add(buffer)
        return inside - elsewhere

    def _waiting_for_each_other(self) -> set[int]:
        """Groups that wait for each other, or lie between such."""
        everything = range(len(self.groups))
        left = set(everything).difference(_released(self.waits_for, self.readers))
        return left and left.difference(_released(self.readers, self.waits_for))

    def _groups_of(self, buffers: Iterable[int], reader: int) -> list[int]:
        """The groups that write buffers, but for the one that reads them."""
        found = dict.fromkeys(self.group_of[buffer] for buffer in buffers if buffer in self.group_of)
        found.pop(reader, None)
        return list(found)

    def as_written(self) -> Order:
        """In program order: a group at the place of the last of its kernels."""
        place_of = {kernel: place for place, kernel in enumerate(self.fusion.kernels)}
        places = [max(place_of[kernel] for kernel in group) for group in self.groups]
        waiting = [len(waits) for waits in self.waits_for]
        queue = sorted((places[k], k) for k, number in enumerate(waiting) if not number)
        order = []
        while queue:
            _, group = heapq.heappop(queue)
            order.append(self.groups[group])
            for reader in self.readers[group]:
                waiting[reader] -= 1
                if not waiting[reader]:
                    heapq.heappush(queue, (places[reader], reader))
        return order

    def breadth_first(self) -> Order:
        """In the order of XLA:CPU's scheduler: first ready, first run."""
        return [self.groups[k] for k in _released(self.waits_for, self.readers)]

    def depth_first(self) -> Order:
        """As a search from the outputs finds them, through what each reads, in order."""
        return [self.groups[group] for group in self._found]

    @functools.cached_property
    def place_found(self) -> dict[int, int]:
        """The place of each kernel in that order."""
        return {kernel: place for place, kernel in enumerate(flat(self.depth_first()))}

    def by_readers(self) -> Order:
        """The same, through what has most readers first, and then what is largest (`DFSMemoryScheduler` there)."""
        return [self.groups[group] for group in self._search(functools.partial(sorted, key=self.fan_out().__getitem__))]

    @functools.cached_property
    def _found(self) -> list[int]:
        return self._search(list)

    def _search(self, in_order: Callable[[Iterable[int]], list[int]]) -> list[int]:
        returned = self._groups_of(self.fusion.program.outputs, -1)
        effects = [k for k, readers in enumerate(self.readers) if not readers and k not in set(returned)]
        stack = [*reversed([*effects, *in_order(returned)])]
        found: dict[int, None] = {}
        while stack:
            waits_for = in_order(each for each in self.waits_for[stack[-1]] if each not in found)
            stack += reversed(waits_for)
            if not waits_for:
                found[stack.pop()] = None
        return list(found)

    def fan_out(self) -> list[tuple[float, float]]:
        """For each group, less than nothing: by how many more groups than one it is read, and what it waits for, and
        the bytes of all that, by every way there; capped by the number of instructions, and by all bytes up to it."""
        program = self.fusion.program
        returned = set(self._groups_of(program.outputs, -1))
        # each kernel, another name of what it makes, and the parts of what it makes several of
        instructions = 2 * len(self.groups) + sum(len(group) for group in self.groups if len(group) > 1)
        most_bytes, rank = 0.0, [(0.0, 0.0)] * len(self.groups)
        for group in self._found:
            own = [program.ops[kernel] for kernel in self.groups[group]]
            own_bytes = sum([op.size_bytes for op in own if op.kind not in ("barrier", "fenced")])
            most_bytes += own_bytes
            before = [rank[each] for each in self.waits_for[group]]
            readers = max(len(self.readers[group]) + (group in returned) - 1, 0) - sum([less for less, _ in before])
            all_bytes = own_bytes - sum([less for _, less in before])
            rank[group] = -min(readers, instructions), -min(all_bytes, most_bytes)
        return rank


def _released(waits_for: Sequence[Sequence[int]], readers: Sequence[Sequence[int]]) -> list[int]:
    """What need not wait, then what waits for that alone, and so on: first ready, first out."""
    waiting = [len(waits) for waits in waits_for]
    order = [k for k, number in enumerate(waiting) if not number]
    for each in order:
        for reader in readers[each]:
            waiting[reader] -= 1
            if not waiting[reader]:
                order.append(reader)
    return order


class ByFreedBytes:
    """XLA's list scheduler under way: of what is ready, what frees most bytes, less what it writes; then what most
    others read; then what became ready last, of several at once the first (`ListScheduler` in
    `hlo_memory_scheduler.cc`).

    Attributes:
      waiting: for how many groups each waits.
      values: what each group reads, whatever its name; inputs are never freed.
      unread: by how many groups each value is still to be read; once more where the program returns it. When one is
        left, it is looked at again if it reads what made the value, and not one of several results, or another name.
    """

    def __init__(self, kernels: Kernels) -> None:
        self._kernels, fusion, ops = kernels, kernels.fusion, kernels.fusion.program.ops
        self.waiting = [len(waits) for waits in kernels.waits_for]
        value = {kernel: value_of(fusion, kernel) for kernel in fusion.kernels}
        self.values = [set(self._values_read(group, value)) for group in kernels.groups]
        self.unread = collections.Counter(value for values in self.values for value in values)
        self.unread.update({value[output] for output in fusion.program.outputs if output in value})
        self._bytes = {kernel: ops[kernel].size_bytes for kernel in fusion.kernels}
        self._written = [
            sum([self._bytes[kernel] for kernel in group if value[kernel] == kernel]) for group in kernels.groups
        ]
        self._is_scalar = [all(ops[kernel].elements == 1 for kernel in group) for group in kernels.groups]
        self._direct_readers: dict[int, list[int]] = collections.defaultdict(list)
        for number, group in enumerate(kernels.groups):
            for read in {read for kernel in group for read in fusion.buffers_read[kernel]} - kernels.in_tuples:
                self._direct_readers[read].append(number)
        self._queue: list[tuple[float, int, int, int]] = []
        self._entry: dict[int, tuple[float, int, int, int]] = {}
        self._entries = 0

    def _values_read(self, group: tuple[int, ...], value: Mapping[int, int]) -> Iterator[int]:
        """What a group reads; who takes one value from behind a barrier counts as reading all that is behind it."""
        fusion = self._kernels.fusion
        for kernel in group:
            is_taken = fusion.program.ops[kernel].kind == "fenced"
            reads = fusion.buffers_read[fusion.program.reads[kernel][0] if is_taken else kernel]
            yield from (value[read] for read in reads if read in value and read not in group and value[read] in value)

    def order(self) -> Order:
        """All kernels, in the order in which they run."""
        order = []
        for group, number in enumerate(self.waiting):
            if not number:
                self._put(group)
        while self._queue:
            entry = heapq.heappop(self._queue)
            group = entry[-1]
            if self._entry.get(group) is entry:
                del self._entry[group]
                order.append(self._kernels.groups[group])
                self._ran(group)
        return order

    def _ran(self, group: int) -> None:
        last_time = []
        for value in self.values[group]:
            self.unread[value] -= 1
            last_time += [value] if self.unread[value] == 1 else []
        for reader in reversed(self._kernels.readers[group]):
            self.waiting[reader] -= 1
            if not self.waiting[reader]:
                self._put(reader)
        for reader in (reader for value in last_time for reader in self._direct_readers[value]):
            if reader in self._entry and self._entry[reader][:2] != self._priority(reader):
                self._put(reader)

    def _put(self, group: int) -> None:
        self._entries += 1
        self._entry[group] = (*self._priority(group), -self._entries, group)
        heapq.heappush(self._queue, self._entry[group])

    def _priority(self, group: int) -> tuple[float, int]:
        if self._is_scalar[group]:
            return _FIRST, 0
        freed = sum([self._bytes[value] for value in self.values[group] if self.unread[value] == 1])
        return self._written[group] - freed, -len(self._kernels.readers[group])
