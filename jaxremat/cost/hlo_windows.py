"""Windows that slide over arrays: pooling, and its gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence

from jaxremat.base.compat import Eqn
from jaxremat.cost.hlo_builder import HloBuilder
from jaxremat.cost.hlo_ops import Facts, Op, shape_of
from jaxremat.trace.listing import Slot

WINDOWS = {"reduce_window_sum": "add", "reduce_window_max": "max", "reduce_window_min": "min"}
"""What slides a window and makes one entry of all that lie in it, and the primitive that makes one of two."""


def window(hlo: HloBuilder, facts: Facts, reads: Sequence[Slot]) -> list[int]:
    """What slides a window. Zeros around and between what is summed become part of the window
    (`algebraic_simplifier.cc`)."""
    operands = hlo.operands(facts, reads)
    read = hlo.ops[operands[0]]
    pads = facts.name == "reduce_window_sum" and read.kind == "pad"
    if pads and hlo.ops[hlo.reads[operands[0]][1]].constant == "0.0":
        return [_slid(hlo, facts, hlo.reads[operands[0]][0], read)]
    return [_slid(hlo, facts, operands[0], None)]


def _slid(hlo: HloBuilder, facts: Facts, read: int, padding: Op | None) -> int:
    kind = "window" if hlo.backend.fuses_windows else "reduce_window"
    library = padding is None and facts.once(_covers_once)
    combines, entries = WINDOWS[facts.name], facts.once(_entries)
    template = facts.template(kind, (facts.params, padding), in_library=library, combines=combines, window=entries)
    return hlo.merge(template, (read,))


def _entries(eqn: Eqn) -> int:
    return math.prod(eqn.params["window_dimensions"])


def _covers_once(eqn: Eqn) -> bool:
    """Whether windows lie side by side (`IsReduceLikeOpSupportedByYnn` in `ynn_support.cc`)."""
    params = eqn.params
    sizes, strides = params["window_dimensions"], params["window_strides"]
    dilated = any(step != 1 for name in ("base_dilation", "window_dilation") for step in params[name])
    return not dilated and max(sizes) > 1 and all(size in (1, step) for size, step in zip(sizes, strides))


def pooled_back(hlo: HloBuilder, facts: Facts, reads: Sequence[Slot]) -> list[int]:
    """The gradient of a pooling maximum."""
    operands = hlo.operands(facts, reads)
    if hlo.backend.expands_searches:
        operands = _searched_windows(hlo, facts, operands)
    elif hlo.backend.scatters_maxima:
        operands = _maxima_and_indices(hlo, facts, operands)
    return [hlo.merge(facts.usual, operands)]


def _searched_windows(hlo: HloBuilder, facts: Facts, reads: tuple[int, ...]) -> tuple[int, ...]:
    """XLA:CPU finds the maxima with one array of indices per axis, then scatters the source there into zeros."""
    (source, operand), axes = reads, range(len(facts.shape))
    counted = Op("iota", facts.shape, "int32", 4 * facts.elements)
    indices = [hlo.constant(hlo.templates.merged(counted, ("axis", axis))) for axis in axes]
    shape = (*shape_of(facts.eqn.invars[0]), len(axes))
    found = Op("reduce_window", shape, "int32", 4 * math.prod(shape))
    searched = hlo.merge(hlo.templates.merged(found, facts.params), (operand, *indices))
    return source, searched, hlo.spread("0.0", facts)


def _maxima_and_indices(hlo: HloBuilder, facts: Facts, reads: tuple[int, ...]) -> tuple[int, ...]:
    """XLA:GPU finds the maxima again, and an index for each axis, in one kernel, then scatters the source there into
    zeros (`select_and_scatter_expander.cc`): those that a ReLU of this shape compares with, where there is one. They
    are written for it in the forward."""
    (source, operand), arrays = reads, 1 + len(facts.shape)
    shape = (arrays, *shape_of(facts.eqn.invars[0]))
    found = Op("reduce_window", shape, "int32", 4 * math.prod(shape))
    return hlo.spread("0.0", facts), source, hlo.merge(hlo.templates.merged(found, facts.params), (operand,))
