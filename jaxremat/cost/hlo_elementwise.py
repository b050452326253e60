"""Element-wise operations, simplified as XLA's algebraic simplifier does."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from jaxremat.cost.hlo_builder import HloBuilder
from jaxremat.cost.hlo_ops import Facts, Op
from jaxremat.cost.hlo_views import View
from jaxremat.trace.listing import Slot

_NEUTRAL = {
    "add": ("0", "0.0"), "mul": ("1", "1.0"), "and": ("True",), "or": ("False",), "max": ("-inf",), "min": ("inf",),
}  # fmt: skip
_ONE = "1.0"  # as literals of any floating type are written


def elementwise(hlo: HloBuilder, facts: Facts, reads: Sequence[Slot]) -> list[int]:
    """An element-wise equation; one of constants is a constant, and what a constant changes nothing of is itself."""
    operands = _operands_of_size(hlo, facts, reads)
    if not all(type(read) is int for read in operands):
        return _of_views(hlo, facts, reads, operands)
    return [_of_operands(hlo, facts, reads, operands)]


def _of_views(hlo: HloBuilder, facts: Facts, reads: Sequence[Slot], operands: tuple[int, ...]) -> list[int]:
    """An equation some of whose operands lie in other orders: they follow that of the earliest product."""
    moving = [read for read in operands if not hlo.lies_anyhow(read)]
    first = min(moving, key=lambda read: (hlo.origin(read), isinstance(read, View)), default=0)
    if not isinstance(first, View):
        return [_of_operands(hlo, facts, reads, tuple(map(hlo.in_order, operands)))]
    alike = [hlo.like(first, read) for read in operands]
    number = len(hlo.ops)
    made = _of_operands(hlo, facts, reads, tuple(alike))
    for index in range(number, len(hlo.ops)):
        if hlo.ops[index].kind != "broadcast" and hlo.ops[index].elements == facts.elements:
            hlo.ops[index] = hlo.templates.changed(hlo.ops[index], shape=first.sizes)
    return [first.of(made)]


def _of_operands(hlo: HloBuilder, facts: Facts, reads: Sequence[Slot], operands: tuple[int, ...]) -> int:
    """An equation of operands that lie alike."""
    ops = hlo.ops
    constants = [ops[read].constant for read in operands]
    if any(constants):
        if None not in constants:
            return hlo.spread(hlo.expression((facts.kind, tuple(constants), facts.params)), facts)
        for read, constant in zip(operands, reversed(constants)) if len(operands) == 2 else ():
            if constant in _NEUTRAL.get(facts.kind, ()):
                return read
    if facts.kind == "add" and (summed := _scattered(hlo, facts, reads, operands)) is not None:
        return summed
    special = _SPECIAL.get(facts.name)
    made = special(hlo, facts, operands) if special else None
    return hlo.merge(facts.usual, operands) if made is None else made


def _operands_of_size(hlo: HloBuilder, facts: Facts, reads: Sequence[Slot]) -> tuple[int, ...]:
    """What an element-wise equation reads, all with as many elements as its result."""
    found: list[int] = []
    at, ops, elements = hlo.at, hlo.ops, facts.elements
    for position, read in enumerate(reads):
        index = hlo.lying(at[read]) if type(read) is int else hlo.operand(facts, position, read, facts.shape)
        found.append(index if ops[index].elements == elements else hlo.widened(index, facts))
    return tuple(found)


def _divided(hlo: HloBuilder, facts: Facts, reads: tuple[int, ...]) -> int | None:
    divisor = hlo.ops[reads[1]]
    if divisor.kind != "broadcast" or (divisor.constant is None and not hlo.backend.spreads_reciprocals):
        return None
    return hlo.merge(facts.template("mul"), (reads[0], _reciprocal(hlo, reads[1], facts)))


def _converted(hlo: HloBuilder, facts: Facts, reads: tuple[int, ...]) -> int | None:
    """What is turned and then narrowed is narrowed first (ReshapeMover)."""
    turned, width = hlo.ops[reads[0]], facts.usual.op.size_bytes
    if turned.kind != "transpose" or turned.size_bytes <= width:
        return None
    (source,) = hlo.reads[reads[0]]
    narrow = Op("convert_element_type", hlo.ops[source].shape, facts.dtype, width)
    narrowed = hlo.merge(hlo.templates.merged(narrow, facts.params), (source,))
    again = dataclasses.replace(turned, dtype=facts.dtype, size_bytes=width)
    return hlo.merge(hlo.templates.merged(again, ("narrowed", reads[0])), (narrowed,))


def _selected(hlo: HloBuilder, facts: Facts, reads: tuple[int, ...]) -> int | None:
    """What selects between false and true is the condition."""
    either = tuple(hlo.ops[read].constant for read in reads[1:])
    return reads[0] if either == ("False", "True") else None


def _squared(hlo: HloBuilder, facts: Facts, reads: tuple[int, ...]) -> int:
    return hlo.merge(facts.template("mul"), (reads[0], reads[0]))


def _to_power(hlo: HloBuilder, facts: Facts, reads: tuple[int, ...]) -> int | None:
    power = facts.eqn.params["y"]
    if power not in (2, 3):
        return None
    square = _squared(hlo, facts, reads)
    return square if power == 2 else hlo.merge(facts.template("mul"), (square, reads[0]))


def _one_minus_square(hlo: HloBuilder, facts: Facts, reads: tuple[int, ...]) -> int:
    one = hlo.spread(_ONE, facts)
    factors = tuple(hlo.merge(facts.template(kind), (one, reads[0])) for kind in ("add", "sub"))
    return hlo.merge(facts.template("mul"), factors)


def _scattered(hlo: HloBuilder, facts: Facts, slots: Sequence[Slot], reads: tuple[int, ...]) -> int | None:
    """A sum with what is scattered into a constant, and read nowhere else, is scattered into the other summand, unless
    that is scattered so, too."""
    are_scattered = [_adds_to_constant(hlo, read) for read in reads]
    if are_scattered.count(True) != 1:
        return None
    place = are_scattered.index(True)
    if not hlo.is_read_once(slots[place]):
        return None
    return hlo.append(facts.op("scatter-add"), (reads[1 - place], *hlo.reads[reads[place]][1:]))


def _adds_to_constant(hlo: HloBuilder, read: int) -> bool:
    return hlo.ops[read].kind == "scatter-add" and hlo.ops[hlo.reads[read][0]].constant is not None


def _reciprocal(hlo: HloBuilder, divisor: int, facts: Facts) -> int:
    """The broadcast of 1/y for a broadcast of y."""
    op = hlo.ops[divisor]
    if op.constant is not None:
        return hlo.spread(hlo.expression(("1/", op.constant)), facts)
    (divided,) = hlo.reads[divisor]
    source = hlo.ops[divided]
    one = hlo.constant(hlo.templates.spread(Op("broadcast", source.shape, op.dtype, source.size_bytes), _ONE))
    inverted = hlo.merge(hlo.templates.inverse(source), (one, divided))
    if divided in hlo.takes_over:
        hlo.takes_over.setdefault(inverted, hlo.takes_over[divided])
    spread = hlo.templates.merged(op, ("1/", divisor))
    return hlo.merge(spread, (inverted,), hlo.equations[divisor])


_SPECIAL: dict[str, Callable[[HloBuilder, Facts, tuple[int, ...]], int | None]] = {
    "convert_element_type": _converted,
    "div": _divided,
    "integer_pow": _to_power,
    "select_n": _selected,
    "one_minus_square": _one_minus_square,
    "square": _squared,
}
