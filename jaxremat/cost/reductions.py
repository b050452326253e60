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


def partition(shape: Sequence[int], axes: Collection[int]) -> Partition:
    """The sizes of what is before the longest run of reduced dimensions, of the run, and of what is after it: the other
    dimensions are reduced in a second step."""
    best = (math.prod(shape), 1, 1)
    for start in axes:
        end = start
        while end in axes or (end < len(shape) and shape[end] == 1):
            end += 1
        run = math.prod(shape[start:end])
        if run > best[1]:
            best = (math.prod(shape[:start]), run, math.prod(shape[end:]))
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
    if _is_a_loop(reduced, after):
        return math.inf
    if reduced > _MOST_ROWS:
        before *= math.isqrt(reduced)  # summed in two steps
    return before * -(-after // _columns(after, read.size_bytes // read.elements))


def _blocks_of_rows(rows: int, length: int) -> int:
    if length > _LONGEST_ROW:
        rows, length = rows * math.isqrt(length), math.isqrt(length)
    threads = min(-(-length // (_PER_THREAD * _WARP)) * _WARP, _THREADS)
    return -(-rows * threads // _THREADS)


def _is_a_loop(reduced: int, after: int) -> bool:
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
