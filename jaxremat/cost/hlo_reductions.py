"""Reductions, in as many steps as their compiler takes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from jaxremat.base.compat import Eqn
from jaxremat.cost.hlo_builder import HloBuilder
from jaxremat.cost.hlo_ops import Facts, Partition, Template, shape_of
from jaxremat.cost.hlo_views import View, places
from jaxremat.cost.reductions import Step, steps
from jaxremat.trace import jaxpr as jaxprs
from jaxremat.trace.listing import Slot

_COMBINES = {"reduce_sum": "add", "reduce_prod": "mul"}
_INDICES = ("argmax", "argmin")


def reduced(hlo: HloBuilder, facts: Facts, reads: Sequence[Slot]) -> list[int]:
    """A reduction; of dimensions of one entry, what it reads."""
    (read,) = hlo.as_it_lies(facts, reads)
    if hlo.ops[read].elements == facts.elements > 0 and facts.name not in _INDICES:
        return [read]
    if not isinstance(read, View):
        return [_reduction(hlo, facts, read, facts.once(_steps))]
    shape = shape_of(facts.eqn.invars[0])
    gone = places(shape, facts.eqn.params["axes"])
    made = _reduction(hlo, facts, read, steps(read.sizes, read.positions(gone)))
    return [read.without(gone).of(made).in_order_or_turned]


def summed(hlo: HloBuilder, facts: Facts, read: int, axes: Sequence[int]) -> int:
    """The result of an equation that is the sum over some axes of what an operation makes."""
    for parts, shape in steps(hlo.ops[read].shape, axes):
        read = hlo.merge(_reducing(facts, parts, shape, "add", in_library=False), (read,))
    return read


def _reduction(hlo: HloBuilder, facts: Facts, read: int, each: Sequence[Step]) -> int:
    name, read = facts.name, int(read)
    combines = _COMBINES.get(name, name.removeprefix("reduce_"))
    library = name in ("reduce_max", "reduce_min") or (name == "reduce_sum" and facts.dtype != "bfloat16")
    if not hlo.backend.splits_reductions or name in _INDICES:
        each = [(each[0][0], facts.shape)]
    is_negated = name == "reduce_sum" and hlo.ops[read].kind == "neg"
    read = hlo.reads[read][0] if is_negated else read
    for parts, shape in each:
        read = hlo.merge(_reducing(facts, parts, shape, combines, in_library=library), (read,))
    return hlo.merge(facts.template("neg"), (read,)) if is_negated else read


def _reducing(facts: Facts, parts: Partition, shape: tuple[int, ...], combines: str, *, in_library: bool) -> Template:
    size_bytes = math.prod(shape) * (facts.result.size_bytes // max(facts.elements, 1))
    key = facts.name, facts.params, parts
    return facts.template(
        "reduce",
        key,
        in_library=in_library,
        combines=combines,
        partition=parts,
        shape=shape,
        size_bytes=size_bytes,
        unread_bytes=facts.once(_extreme_bytes),
    )


def _extreme_bytes(reduction: Eqn) -> int:
    """An index is found with the number that lies there, which is written beside it."""
    found = reduction.primitive.name in _INDICES
    return math.prod(shape_of(reduction.outvars[0])) * jaxprs.dtype_of(reduction.invars[0]).itemsize if found else 0


def _steps(reduction: Eqn) -> list[Step]:
    return steps(shape_of(reduction.invars[0]), reduction.params["axes"])
