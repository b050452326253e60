"""How XLA:GPU spreads a reduction over the device: by blocks of threads, each on one core.

Sums of columns have few: each takes some columns whole. A core reads no more than so much in a second, so few blocks
read slowly. (openxla/xla: `emitters/reduction.cc` for the blocks, `gpu_performance_model_base.cc` for what they read,
`reduction_utils.cc` for what is reduced in one step and what a loop reduces.)
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from jaxremat.cost.hlo_ops import Op, Partition

_WARP = 32  # threads, and columns of a tile
_THREADS = 256  # kThreadsPerBlockTarget
_PER_THREAD = 32  # kMinorReducedElementsPerThread
_MOST_ROWS, _LONGEST_ROW = 4096, 16384  # ReductionDimensionRaceFreeBound

Step = tuple[Partition, tuple[int, ...]]
"""A reduction, and the shape of what it gives."""


def partition(shape: Sequence[int], axes: Collection[int]) -> Partition:
    """The sizes of what is before the longest run of reduced dimensions, of the run, and of what is after it."""
    return _parts(shape, *_longest_run(shape, axes))


def _parts(shape: Sequence[int], start: int, end: int) -> Partition:
    return math.prod(shape[:start]), math.prod(shape[start:end]), math.prod(shape[end:])


def steps(shape: Sequence[int], axes: Collection[int]) -> list[Step]:
    """The reductions that become of one, with the shape of what each gives: the longest run of dimensions is reduced
    first (`reduction_splitter.cc`), and what is too long for one kernel in two (`tree_reduction_rewriter.cc`)."""
    found: list[Step] = []
    while not found or any(shape[axis] > 1 for axis in axes):
        start, end = _longest_run(shape, axes)
        before, reduced, after = _parts(shape, start, end)
        kept = [axis for axis in range(len(shape)) if axis not in axes or not start <= axis < end]
        if reduced > (_LONGEST_ROW if after == 1 else _MOST_ROWS):
            parts = math.isqrt(reduced)
            found.append(((before * parts, reduced // parts, after), (before, parts, after)))
            reduced = parts
        shape, axes = [shape[axis] for axis in kept], [place for place, axis in enumerate(kept) if axis in axes]
        found.append(((before, reduced, after), tuple(shape)))
    last, _ = found[-1]
    return [*found[:-1], (last, tuple(size for axis, size in enumerate(shape) if axis not in axes))]


def _longest_run(shape: Sequence[int], axes: Collection[int]) -> tuple[int, int]:
    best, size = (0, 0), 1
    for start in sorted(axes):
        end = start
        while end in axes or (end < len(shape) and shape[end] == 1):
            end += 1
        if math.prod(shape[start:end]) > size:
            best, size = (start, end), math.prod(shape[start:end])
    return best


def blocks(op: Op, read: Op) -> float:
    """Into how many blocks a reduction is split; infinite where that limits nothing.

    Args:
      op, read: a reduction and what it reads.
    """
    before, reduced, after = op.partition
    if not read.elements:
        return math.inf
    if after == 1:
        return _blocks_of_rows(before, reduced)
    if is_a_loop(reduced, after):
        return math.inf
    return before * -(-after // _columns(after, read.size_bytes // read.elements))


def _blocks_of_rows(rows: int, length: int) -> int:
    threads = min(-(-length // (_PER_THREAD * _WARP)) * _WARP, _THREADS)
    return -(-rows * threads // _THREADS)


def is_a_loop(reduced: int, after: int) -> bool:
    """Whether columns are so short that each is one thread's (IsUnnestedReductionFasterThanElemental)."""
    shortest = _WARP * (8 if after < 3 else 4 if after < 8 else 2 if after < _WARP else 1)
    return reduced < shortest


def _columns(after: int, itemsize: int) -> int:
    """How many columns a block takes: a warp's, of as many entries as are loaded at once (GetVectorSizeForMlir)."""
    if _WARP % after == 0:
        return after
    for entries in (4, 2) if itemsize < 4 else (2,):
        if after % entries == 0 and _WARP * entries <= after:
            return _WARP * entries
    return _WARP
