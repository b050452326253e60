"""Which rows XLA:GPU takes together in a kernel that runs by rows: some lie apart, at a part of the bandwidth.

It chooses tiles by what it estimates that they take (`gpu_indexing_performance_model.cc`). A kernel that compares the
indices of a mask does least where it takes rows that share a part of it, those of other batches and heads; so does one
that reads the mask, unless it reads or writes a number per row as well, since these lie side by side. The rules below
stand for these estimates, as jax 0.12.0.1 compiles for an H200; tests/aot/test_gpu_rules.py asks on both sides.
"""

from __future__ import annotations

import math

from jaxremat.cost.fused import Fusion
from jaxremat.cost.hlo_ops import Op

_MOST_ENTRIES = 16384  # of a tile: 16 rows of 1024, and 64 of 256; benchmarks/results/gpu.md
_FEWEST_TILES = 256  # of a kernel: 8192 rows of 256 are taken by 32, 4096 by 16; benchmarks/results/gpu.md
_MOST_SHARING = 32  # rows of a tile that share a part of a mask: of 64 there are two beside; benchmarks/results/gpu.md
_SHORTEST_ROW = 256  # of shorter ones, several are taken side by side; benchmarks/results/gpu.md
_SHORTEST_COPIED = 512  # the same where a kernel writes as many bytes as it reads; benchmarks/results/gpu.md


def has_rows_apart(fusion: Fusion, kernel: int) -> bool:
    """Whether a kernel takes rows that lie apart since they share a mask, one of those that lie side by side."""
    if kernel not in fusion.custom or kernel in fusion.products:
        return False
    inside, ops, reads = fusion.runs(kernel), fusion.program.ops, fusion.program.reads
    spread = [index for index in inside if ops[index].kind == "broadcast" and reads[index]]
    masks = {reads[index][0]: index for index in spread if _is_of_pairs(ops[reads[index][0]])}
    if not masks:
        return False
    mask, scores = next(iter(masks.items()))
    rows = math.prod(ops[scores].shape[:-1])
    read = [ops[buffer] for buffer in fusion.buffers_read[kernel]]
    if all(op.elements != rows for op in (ops[kernel], *read)):
        return True
    large = [op.size_bytes for op in read if op.elements == ops[scores].elements]
    copies = len(large) == 1 and ops[kernel].size_bytes >= large[0]
    shortest = _SHORTEST_COPIED if copies else _SHORTEST_ROW
    is_compared = not inside.isdisjoint(masks)
    return is_compared and ops[scores].shape[-1] >= shortest and _shares_all(ops[mask], ops[scores])


def _is_of_pairs(op: Op) -> bool:
    """Whether what is spread, over batches and heads then, is a mask over pairs of positions."""
    return op.dtype == "bool" and sum(length > 1 for length in op.shape) > 1


def _shares_all(mask: Op, scores: Op) -> bool:
    """Whether there are no more rows in a tile than share a part of the mask."""
    length = scores.shape[-1]
    together = min(_MOST_ENTRIES // length, scores.elements // length // _FEWEST_TILES)
    return together <= min(_MOST_SHARING, scores.elements // mask.elements)
