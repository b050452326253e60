"""Products of parts of what they contract; how many parts there are, `split_products` says."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from jaxremat.base.compat import Eqn
from jaxremat.cost.hlo_builder import HloBuilder
from jaxremat.cost.hlo_ops import Facts, shape_of
from jaxremat.cost.reductions import is_a_loop
from jaxremat.cost.split_products import Product, padded, parts_of
from jaxremat.trace import jaxpr as jaxprs

_SUMMED_WIDE = frozenset({"bfloat16", "float16"})  # GetGemmAccumulatorType
_UNSPLIT = frozenset({"int32"})  # neither of the libraries multiplies them (`splitk_rewriter.cc`)


def in_parts(hlo: HloBuilder, facts: Facts, operands: Sequence[int]) -> int | None:
    """A product of parts of what it contracts, side by side, and their sum; None where it is one product. Operands that
    cannot be cut into equal parts are filled up."""
    if not hlo.backend.splits_products or any(hlo.ops[read].dtype in _UNSPLIT for read in operands):
        return None
    product = facts.once(_matrices)
    parts = parts_of(product, hlo.device)
    if parts == 1:
        return None
    sizes, summed = (product.batches, parts, product.rows * product.columns), facts.once(_summed_dtype)
    cut = tuple(_filled(hlo, read, padded(product, parts) / product.contracted) for read in operands)
    of_parts = facts.template("dot", (facts.params, "parts"), shape=sizes, **_in(facts, summed, parts))
    multiplied = hlo.merge(of_parts, cut)
    hlo.places[multiplied] = facts.place
    kind = "window" if is_a_loop(*sizes[1:]) else "reduce"
    total = facts.template(kind, "parts", combines="add", window=parts, partition=sizes, **_in(facts, summed))
    made = hlo.merge(total, (multiplied,))
    return made if summed == facts.dtype else hlo.merge(facts.template("convert_element_type", facts.dtype), (made,))


def _in(facts: Facts, dtype: str, times: int = 1) -> dict[str, int | str]:
    """The dtype and the bytes of so many of an equation's results, in another dtype."""
    return {"dtype": dtype, "size_bytes": times * np.dtype(dtype).itemsize * facts.elements}


def _filled(hlo: HloBuilder, read: int, share: float) -> int:
    """An operand with zeros behind what is contracted of it."""
    op = hlo.ops[read]
    if share == 1.0:
        return read
    return hlo.merge(hlo.templates.resized(op, "pad", (round(op.elements * share),), "parts"), (read,))


def _matrices(product: Eqn) -> Product:
    """The sizes of a product, and the bytes of what it reads and gives."""
    contracts, batches = product.params["dimension_numbers"]
    shapes = [shape_of(operand) for operand in product.invars]
    lead = math.prod(shapes[0][dim] for dim in batches[0])
    contracted = math.prod(shapes[0][dim] for dim in contracts[0])
    rows, columns = (math.prod(shape) // max(lead * contracted, 1) for shape in shapes)
    itemsizes = tuple(jaxprs.dtype_of(operand).itemsize for operand in product.invars)
    sum_itemsize, itemsize = np.dtype(_summed_dtype(product)).itemsize, jaxprs.dtype_of(product.outvars[0]).itemsize
    return Product(lead, rows, columns, contracted, itemsizes, sum_itemsize, itemsize)


def _summed_dtype(product: Eqn) -> str:
    dtype = str(jaxprs.dtype_of(product.outvars[0]))
    return "float32" if dtype in _SUMMED_WIDE else dtype
