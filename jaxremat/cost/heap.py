"""Where the buffers of a compiled program lie: beside outputs, or at fixed addresses of one heap, with gaps between.

XLA places all buffers before the program runs (`buffer_assignment.cc`). What fits into the buffer of an output before
that is made waits there; all else goes into a heap (`GlobalDecreasingSizeBestFitHeap` in `heap_simulator.cc`): one
buffer after the other takes the smallest gap, among those that live at the same time, that it fits into. So the heap
may reach further than what is live at once.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence

import numpy as np

Span = tuple[int, int, int, int]  # kernel, bytes, first step, last step


def beside_outputs(spans: list[Span], outputs: list[Span]) -> list[Span]:
    """The spans that find no room in buffers of outputs before those are made: the largest go first, each into the
    smallest that it fits into (`AssignBuffersForComputations` in `buffer_assignment.cc`)."""
    rooms = sorted([(size, first) for _, size, first, _ in outputs])
    occupied = [-1 << first for _, first in rooms]
    sizes, beyond = [size for size, _ in rooms], []
    for span in sorted(spans, key=lambda span: span[1], reverse=True):
        _, size, first, last = span
        steps = (2 << last) - (1 << first)
        room = next((k for k in range(bisect.bisect_left(sizes, size), len(rooms)) if not occupied[k] & steps), None)
        if room is None:
            beyond.append(span)
        else:
            occupied[room] |= steps
    return beyond


def heap_bytes(spans: Sequence[Span], taken_by: Mapping[int, int], live_bytes: int = 0) -> int:
    """How far a heap reaches that holds some buffers.

    XLA tries two orders, the largest buffers first and those that live longest first, and takes what reaches less far.

    Args:
      spans: the buffers, in the order in which kernels make them.
      taken_by: of buffers, by kernel, the kernel that writes over them: its result lies where they lay.
      live_bytes: the most bytes that are live at once: where one order reaches no further, the other is not tried.
    """
    place = {kernel: k for k, (kernel, *_) in enumerate(spans)}
    taken = ((k, taken_by[kernel]) for kernel, k in place.items() if kernel in taken_by)
    takes = {place[taker]: k for k, taker in taken if taker in place}
    begin, end = _moments(spans, takes)
    size_bytes = np.asarray([size for _, size, _, _ in spans], np.int64)
    gone = end.copy()
    for taker in sorted(takes, key=lambda k: -begin[k]):
        gone[takes[taker]] = gone[taker]
    firsts = np.setdiff1d(np.flatnonzero(size_bytes), [*takes])
    largest_first = firsts[np.lexsort((begin[firsts] - end[firsts], -size_bytes[firsts]))]
    longest_first = firsts[np.lexsort((-size_bytes[firsts], begin[firsts] - gone[firsts]))]
    reach = _reach(size_bytes[largest_first], begin[largest_first], gone[largest_first])
    if reach == live_bytes:
        return reach
    return min(reach, _reach(size_bytes[longest_first], begin[longest_first], gone[longest_first]))


def _moments(spans: Sequence[Span], takes: Mapping[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """([S], [S]) when each buffer begins and ends, where nothing else does so at the same moment: of those that begin
    at one step the first to end comes first, and what a kernel writes over ends just before that kernel's begins."""
    begin, end = np.zeros((2, len(spans)), np.int64)
    given_up = set(takes.values())
    events = sorted(
        [(first, False, last, k) for k, (_, _, first, last) in enumerate(spans)]
        + [(last, True, first, k) for k, (_, _, first, last) in enumerate(spans) if k not in given_up]
    )
    moment = 0
    for _, ends, _, k in events:
        if not ends and k in takes:
            end[takes[k]] = moment = moment + 1
        (end if ends else begin)[k] = moment = moment + 1
    return begin, end


def _reach(size_bytes: np.ndarray, begin: np.ndarray, end: np.ndarray) -> int:
    """How far buffers reach, placed in this order."""
    low, high = np.zeros((2, size_bytes.size), np.int64)
    for k, size in enumerate(size_bytes.tolist()):
        beside = np.flatnonzero((begin[:k] <= end[k]) & (end[:k] >= begin[k]))
        if beside.size:
            upwards = beside[low[beside].argsort()]
            gaps, filled = low[upwards], np.maximum.accumulate(high[upwards])
            gaps[1:] -= filled[:-1]
            wide = np.flatnonzero(gaps >= size)
            found = wide[gaps[wide].argmin()] if wide.size else -1
            low[k] = low[upwards[found]] - gaps[found] if wide.size else filled[-1]
        high[k] = low[k] + size
    return int(high.max(initial=0))
