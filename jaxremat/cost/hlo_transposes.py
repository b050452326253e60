"""Transposes: most of them move nothing."""

from __future__ import annotations

from collections.abc import Sequence

from jaxremat.base.compat import Eqn
from jaxremat.cost.hlo_builder import HloBuilder
from jaxremat.cost.hlo_ops import Facts, Op, shape_of
from jaxremat.cost.hlo_views import View, turned
from jaxremat.trace.listing import Slot


def transposed(hlo: HloBuilder, facts: Facts, reads: Sequence[Slot]) -> list[int]:
    """A transpose: of a product that no one else reads, the product with its operands in each other's places; elsewhere
    a view, where the compiler moves nothing before it has to."""
    (read,) = hlo.as_it_lies(facts, reads)
    if facts.once(_keeps_order):
        return [read]
    shape, permutation = shape_of(facts.eqn.invars[0]), facts.eqn.params["permutation"]
    if _swaps_product(hlo, permutation, reads[0], read):
        swapped = hlo.swapped[read]
        shape, permutation = _permuted(shape, swapped), tuple(swapped.index(dim) for dim in permutation)
        hlo.ops[read] = _flipped(hlo, hlo.ops[read], shape)
    if hlo.backend.transposes_late:
        result = turned(read, shape, permutation)
        if isinstance(result, View) and (spread := hlo.spread_otherwise(read, facts.shape)) is not None:
            return [spread]
        if isinstance(result, View) and hlo.ops[result].kind == "dot":
            hlo.ops[result] = hlo.templates.changed(hlo.ops[result], is_turned=True)
        return [result]
    return [read if list(permutation) == sorted(permutation) else hlo.merge(facts.usual, (read,))]


def _flipped(hlo: HloBuilder, product: Op, shape: tuple[int, ...]) -> Op:
    matrices = product.matrices.flipped if product.matrices else None
    return hlo.templates.changed(product, shape=shape, matrices=matrices)


def _permuted(shape: tuple[int, ...], permutation: Sequence[int]) -> tuple[int, ...]:
    return tuple(shape[dim] for dim in permutation)


def _keeps_order(transpose: Eqn) -> bool:
    """Whether nothing moves but dimensions of one entry."""
    shape = shape_of(transpose.invars[0])
    dims = [dim for dim in transpose.params["permutation"] if shape[dim] > 1]
    return dims == sorted(dims)


def _swaps_product(hlo: HloBuilder, permutation: Sequence[int], slot: Slot, read: int) -> bool:
    """Whether a transpose means a product that no one else reads: its operands change places."""
    swapped = None if isinstance(read, View) else hlo.swapped.get(read)
    if swapped is None or not hlo.is_read_once(slot):
        return False
    batch = sum(dim == place for place, dim in enumerate(swapped))
    return [dim for dim in permutation if dim >= batch] == list(swapped[batch:])
