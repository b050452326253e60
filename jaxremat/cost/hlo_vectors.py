"""Products that are computed without matrices: those of vectors, which are products entry by entry, or sums of such.

(openxla/xla: `algebraic_simplifier.cc` for both, `gpu_algebraic_simplifier.cc` for which products are small.)
"""

from __future__ import annotations

from collections.abc import Sequence

from jaxremat.cost.hlo_builder import HloBuilder
from jaxremat.cost.hlo_ops import Facts, Matrices
from jaxremat.cost.hlo_reductions import summed
from jaxremat.trace.listing import Slot


def by_entries(hlo: HloBuilder, facts: Facts, slots: Sequence[Slot], matrices: Matrices) -> int | None:
    """A product as a product entry by entry, and a sum of it where something is contracted; None where it takes a
    matrix."""
    if matrices.contracted == 1:
        each = [_spread(hlo, read, facts.shape, side) for side, read in enumerate(hlo.operands(facts, slots))]
        return hlo.merge(facts.template("mul"), (each[0], each[1]))
    if not _is_small(matrices, hlo.backend.small_products):
        return None
    reads = hlo.operands(facts, slots)
    side = int(hlo.ops[reads[1]].elements > hlo.ops[reads[0]].elements)
    matrix, vector = reads[side], reads[1 - side]
    multiplied = hlo.templates.resized(hlo.ops[matrix], "mul", hlo.ops[matrix].shape, "")
    product = hlo.merge(multiplied, (matrix, _spread(hlo, vector, hlo.ops[matrix].shape, side)))
    return summed(hlo, facts, product, matrices.contracts[side])


def _is_small(matrices: Matrices, most_entries: int) -> bool:
    """Whether a matrix meets a vector, and both have few entries; or two vectors do."""
    sides = matrices.rows, matrices.columns
    return 1 in sides and most_entries > 0 and (max(sides) == 1 or sum(sides) * matrices.contracted < most_entries)


def _spread(hlo: HloBuilder, read: int, shape: tuple[int, ...], side: int) -> int:
    """An operand over all entries of a product; `side`: along which of its dimensions."""
    op = hlo.ops[read]
    if op.shape == shape:
        return read
    return hlo.merge(hlo.templates.resized(op, "broadcast", shape, ("over", side)), (read,))
