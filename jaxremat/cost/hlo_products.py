"""Contractions and convolutions, with the copies of operands that each compiler makes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Container, Hashable, Sequence
from typing import Any

import numpy as np
from jax.lax import Precision

from jaxremat.base.compat import Eqn
from jaxremat.cost.hlo_builder import HloBuilder
from jaxremat.cost.hlo_ops import Facts, Matrices, Op, OperandLayout, shape_of
from jaxremat.cost.hlo_vectors import by_entries
from jaxremat.cost.hlo_views import View, places, view_of
from jaxremat.cost.reductions import partition
from jaxremat.trace.listing import Slot

FLOATS = frozenset({"float32", "bfloat16", "float64"})
"""Dtypes in which XLA:CPU hands contractions and reductions to its library."""
_CUBLAS_FLOATS = FLOATS | {"float16"}
_ROUNDED = "bfloat16"  # what a TPU multiplies at default precision (`jax.lax.Precision`)
Contracts = tuple[tuple[int, ...], ...]
_LIBRARY_CONVOLUTIONS = frozenset({"float32", "float64"})


def dot(hlo: HloBuilder, facts: Facts, slots: Sequence[Slot]) -> list[int]:
    """A contraction, with transposes of matrices folded in, and copies of operands that do not lie as it reads them."""
    contracts, batches = facts.once(_dimensions)
    matrices = facts.once(_matrices)
    if (made := by_entries(hlo, facts, slots, matrices)) is not None:
        return [made]
    reads = hlo.as_it_lies(facts, slots)
    if not batches[0]:
        reads, contracts = _turned(hlo, reads, contracts)
    layout = facts.layout(contracts)
    operands = [
        _laid_out(hlo, facts, side, read, contract, layout)
        for side, (read, contract) in enumerate(zip(reads, contracts))
    ]
    if hlo.backend.rounds_operands and _is_fast(facts.eqn):
        operands = [_converted(hlo, read, _ROUNDED) if hlo.ops[read].dtype == "float32" else read for read in operands]
    plain = layout.contracts_rows or operands[0] != reads[0]
    if not batches[0] and not hlo.backend.products_compute_operands:
        operands = [_flattened(hlo, facts, side, read) for side, read in enumerate(operands)]
    library: Container[str] = ()
    if hlo.backend.library_products:
        library = () if batches[0] else _CUBLAS_FLOATS
    elif hlo.backend.library_groups:
        library = FLOATS if plain and layout.is_matrix else ()
    made = _product(hlo, "dot", tuple(operands), facts, library, matrices._replace(contracts=contracts))
    is_free = hlo.backend.transposes_late and not batches[0]
    (hlo.free if is_free else hlo.places)[made] = facts.place
    if len(facts.shape) == 2 or hlo.backend.transposes_late:
        hlo.swapped[made] = facts.once(_swapped)
    return [made]


def _swapped(product: Eqn) -> tuple[int, ...]:
    """How a product's result is transposed where its operands change places."""
    (contracted, _), (batch, _) = product.params["dimension_numbers"]
    columns, rank = len(shape_of(product.invars[0])) - len(contracted), len(shape_of(product.outvars[0]))
    return (*range(len(batch)), *range(columns, rank), *range(len(batch), columns))


def _matrices(product: Eqn) -> Matrices:
    """What a product multiplies, as the program has it."""
    contracts, batches = _dimensions(product)
    shapes = [shape_of(operand) for operand in product.invars]
    of_batch, contracted = (math.prod(shapes[0][dim] for dim in dims[0]) for dims in (batches, contracts))
    rows, columns = (math.prod(shape) // max(of_batch * contracted, 1) for shape in shapes)
    return Matrices(of_batch, rows, columns, contracted, contracts)


def _dimensions(product: Eqn) -> tuple[Contracts, Contracts]:
    """(contracted dimensions, batch dimensions) of both operands."""
    contracts, batches = product.params["dimension_numbers"]
    return tuple(map(tuple, contracts)), tuple(map(tuple, batches))


def _turned(hlo: HloBuilder, reads: tuple[int, ...], contracts: Contracts) -> tuple[tuple[int, ...], Contracts]:
    """Operands, and what is contracted of them, with transposes of matrices folded into the product."""
    if all(type(read) is int and hlo.ops[read].kind != "transpose" for read in reads):
        return reads, contracts
    turned = list(zip(reads, contracts))
    for side, (read, contract) in enumerate(turned):
        op = hlo.ops[read]
        if isinstance(read, View):
            if len(read.sizes) == 2 and len(contract) == 1:
                turned[side] = int(read), (1 - contract[0],)
        elif op.kind == "transpose" and len(op.shape) == 2 and len(contract) == 1:
            turned[side] = hlo.reads[read][0], (1 - contract[0],)
    return tuple(read for read, _ in turned), tuple(contract for _, contract in turned)


def _laid_out(
    hlo: HloBuilder, facts: Facts, side: int, read: int, contract: tuple[int, ...], layout: OperandLayout
) -> int:
    """An operand; copied where the compiler does so, since it does not lie as its product wants it."""
    if isinstance(read, View):
        return _of_view(hlo, facts, side, read, contract, layout)
    if hlo.backend.dot_copies:
        key = contract, layout.batches[side]
        return read if layout.is_canonical[side] else _copy(hlo, facts, side, read, key)
    if layout.batch_leads[side] or not hlo.backend.batch_copies:
        return read
    shape = shape_of(facts.eqn.invars[side])
    view = view_of(read, shape).in_places(places(shape, layout.copy_order[side]))
    if view is not None and hlo.is_free(view, read):
        return hlo.like(view, read)
    return _copy(hlo, facts, side, read, layout.copy_order[side])


def _of_view(
    hlo: HloBuilder, facts: Facts, side: int, view: View, contract: tuple[int, ...], layout: OperandLayout
) -> int:
    """An operand whose dimensions lie in another order: as it is where that is the order of a matrix."""
    shape = shape_of(facts.eqn.invars[side])
    batch = layout.batches[side]
    free = [dim for dim in range(len(shape)) if dim not in (*batch, *contract)]
    orders = [places(shape, dims) for dims in ((*batch, *contract, *free), (*batch, *free, *contract))]
    if view.order in orders:
        return int(view)
    return hlo.in_order(view) if not batch else _copy(hlo, facts, side, view, (layout.copy_order[side], view.order))


def _copy(hlo: HloBuilder, facts: Facts, side: int, read: int, key: Hashable) -> int:
    """An operand in another layout."""
    shape = shape_of(facts.eqn.invars[side])
    return hlo.merge(hlo.templates.resized(hlo.ops[read], "transpose", shape, key), (int(read),))


def _flattened(hlo: HloBuilder, facts: Facts, side: int, read: int) -> int:
    op = hlo.ops[read]
    if len(shape_of(facts.eqn.invars[side])) <= 2 or op.kind == "transpose":
        return read
    return hlo.merge(hlo.templates.resized(op, "bitcast", op.shape, "matrix"), (read,))


def conv(hlo: HloBuilder, facts: Facts, slots: Sequence[Slot]) -> list[int]:
    """A convolution; where operands are copied, of channels last, its result turned as the program has it."""
    reads, eqn, dims = hlo.operands(facts, slots), facts.eqn, facts.eqn.params["dimension_numbers"]
    library = _LIBRARY_CONVOLUTIONS if _conv_in_library(eqn) else frozenset()
    if not hlo.backend.dot_copies:
        is_turned = hlo.ops[reads[1]].kind == "rev"
        if hlo.backend.filter_copies and tuple(dims.lhs_spec) == _channels_last(dims):
            reads = reads[0], _filter(hlo, facts, reads[1])
        if not hlo.backend.returns_workspace:
            return [_product(hlo, "conv", reads, facts, library)]
        is_forward = facts.once(_is_undilated) and (not is_turned or facts.once(_is_pointwise))
        key = facts.params, is_forward
        return [hlo.merge(facts.template("conv", key, in_library=True, takes_addend=is_forward), reads)]
    specs = ((dims.lhs_spec, _channels_last(dims)), (dims.rhs_spec, _kernel_order(dims)))
    operands = tuple(
        read if tuple(spec) == wanted else _copy(hlo, facts, side, read, tuple(spec))
        for side, (read, (spec, wanted)) in enumerate(zip(reads, specs))
    )
    if (groups := eqn.params["batch_group_count"]) > 1:
        return [_between_all_groups(hlo, facts, operands, groups)]
    made = _product(hlo, "conv", operands, facts, library)
    if tuple(dims.out_spec) == _channels_last(dims):
        return [made]
    return [hlo.merge(hlo.templates.resized(hlo.ops[made], "transpose", facts.shape, "result"), (made,))]


def _is_undilated(convolution: Eqn) -> bool:
    return math.prod(convolution.params["lhs_dilation"]) == 1


def _is_pointwise(convolution: Eqn) -> bool:
    """Whether a filter is one entry per pair of channels: reversed, it is the same."""
    spatial = convolution.params["dimension_numbers"].rhs_spec[2:]
    return math.prod(shape_of(convolution.invars[1])[dimension] for dimension in spatial) == 1


def _between_all_groups(hlo: HloBuilder, facts: Facts, reads: tuple[int, ...], groups: int) -> int:
    """What groups of a batch give, as in gradients of depthwise filters: every group meets the filters of all, what is
    of other groups is set to zero, and the rest is summed (`convolution_group_converter.cc`)."""
    shape, usual = (groups, *facts.shape), facts.usual.op
    wide = dataclasses.replace(usual, shape=shape, size_bytes=groups * usual.size_bytes, flops=groups * usual.flops)
    convolved = hlo.merge(hlo.templates.merged(wide, facts.params), reads)
    masked = hlo.merge(hlo.templates.resized(wide, "transpose", shape, "masked"), (convolved,))
    parts = partition(shape, (0,))
    return hlo.merge(facts.template("reduce", "groups", in_library=True, combines="add", partition=parts), (masked,))


def _filter(hlo: HloBuilder, facts: Facts, read: int) -> int:
    """A filter as the library reads it; one for a convolution and for its gradient, which reads it in reverse."""
    outputs, inputs, *spatial = facts.eqn.params["dimension_numbers"].rhs_spec
    if hlo.ops[read].kind == "rev":
        outputs, inputs, (read,) = inputs, outputs, hlo.reads[read]
    order = outputs, *spatial, inputs
    return read if order == tuple(range(len(order))) else _copy(hlo, facts, 1, read, order)


def _product(
    hlo: HloBuilder,
    kind: str,
    reads: tuple[int, ...],
    facts: Facts,
    library: Container[str],
    matrices: Matrices | None = None,
) -> int:
    """A contraction, in its own dtype or in float32; the library takes it in the given dtypes."""
    dtype, widened = facts.dtype, hlo.backend.widened_products
    if not widened or dtype in library or widened.isdisjoint({dtype, *(hlo.ops[read].dtype for read in reads)}):
        key = facts.params, matrices
        return hlo.merge(facts.template(kind, key, in_library=dtype in library, matrices=matrices), reads)
    wide = tuple(_converted(hlo, read, "float32") if hlo.ops[read].dtype in widened else read for read in reads)
    made = hlo.merge(facts.wide_product(kind, in_library="float32" in library), wide)
    return made if dtype == "float32" else hlo.merge(facts.template("convert_element_type", dtype), (made,))


def _is_fast(product: Eqn) -> bool:
    """Whether a product may round its operands."""
    return product.params["precision"] in (None, (Precision.DEFAULT,) * 2)


def _converted(hlo: HloBuilder, read: int, dtype: str) -> int:
    op = hlo.ops[read]
    other = Op("convert_element_type", op.shape, dtype, np.dtype(dtype).itemsize * op.elements)
    return hlo.merge(hlo.templates.merged(other, dtype), (read,))


def _channels_last(dims: Any) -> tuple[int, ...]:
    spatial = len(dims.lhs_spec) - 2
    return (0, spatial + 1, *range(1, spatial + 1))


def _kernel_order(dims: Any) -> tuple[int, ...]:
    spatial = len(dims.rhs_spec) - 2
    return (spatial + 1, spatial, *range(spatial))


def _conv_in_library(eqn: Eqn) -> bool:
    """Two-dimensional convolutions without dilation of the input, with enough channels, that do not grow the image."""
    dims, params = eqn.params["dimension_numbers"], eqn.params
    out, image = ([shape_of(v)[i] for i in spec] for v, spec in zip((eqn.outvars[0], eqn.invars[0]), dims[2::-2]))
    return (
        len(out) == 4
        and params["batch_group_count"] == 1
        and set(params["lhs_dilation"]) <= {1}
        and max(out[1], image[1]) > 16
        and all(after <= before for after, before in zip(out[2:], image[2:]))
    )
