"""A program as the small operations that a compiler fuses: close to XLA's HLO after simplification.

Reshapes vanish, literals become broadcasts, size-1 dimensions are broadcast explicitly, a division by a broadcast
value becomes a multiplication by the broadcast of its reciprocal, equal operations are merged (never across an
optimization barrier), and contractions get the transposed copies that their operands need.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax.numpy as jnp

from jaxremat.backends.backend import Backend
from jaxremat.base import compat
from jaxremat.base.compat import Eqn, Jaxpr, Var
from jaxremat.cost.hlo_builder import Beginning, HloBuilder, HloProgram
from jaxremat.cost.hlo_elementwise import elementwise
from jaxremat.cost.hlo_ops import SCATTERS, Computation, Facts, Op, Templates, alone, shape_of
from jaxremat.cost.hlo_products import conv, dot
from jaxremat.cost.hlo_reductions import reduced
from jaxremat.cost.hlo_transposes import transposed
from jaxremat.cost.hlo_views import View
from jaxremat.cost.hlo_windows import WINDOWS, pooled_back, window
from jaxremat.trace import jaxpr as jaxprs
from jaxremat.trace.listing import Line, Listing, Slot, listing_of
from jaxremat.trace.primitives import ALIASING, CALLS, CHECKPOINTS, ELEMENTWISE, LOOPS, OWN_RULES, REDUCTIONS


def lower(jaxpr: Jaxpr, backend: Backend, templates: Templates | None = None) -> HloProgram:
    """Lowers a jaxpr.

    Args:
      jaxpr: any jaxpr; call-like equations are followed into their bodies.
      backend: whose compiler it is for.
      templates: what is known of its equations.
    """
    return lower_body(alone(jaxpr), backend, templates or Templates())


def lower_listing(
    listing: Listing,
    backend: Backend,
    templates: Templates,
    shared: int = 0,
    begun: dict[int, Beginning] | None = None,
) -> HloProgram:
    """Lowers a program that was put together from equations, with what is known of them.

    Args:
      listing: the program.
      backend: whose compiler it is for.
      templates: what is known of its equations.
      shared: how many of its first lines other programs may begin with, too.
      begun: such lines, lowered before: of every number of them, the latest.
    """
    begun, readers = {} if begun is None else begun, functools.cache(listing.readers)
    first, before = listing.lines[:shared], begun.get(shared)
    if before is None or not before.serves(listing, first, readers):
        before = begun[shared] = Beginning(
            tuple(listing.inputs), first, _first_lines(listing, first, backend, templates)
        )
    hlo = before.hlo.copy(readers)
    _lines(hlo, listing.lines[shared:], shared, None)
    return hlo.program([hlo.in_order(hlo.found(slot, hlo.at)) for slot in listing.outputs if isinstance(slot, int)])


def _first_lines(listing: Listing, first: Sequence[Line], backend: Backend, templates: Templates) -> HloBuilder:
    hlo = HloBuilder(backend, templates)
    hlo.at, hlo.readers = [hlo.make_input(var) for var in listing.inputs], functools.cache(listing.readers)
    _lines(hlo, first, 0, None)
    return hlo


def lower_body(body: Computation, backend: Backend, templates: Templates) -> HloProgram:
    """Lowers what a loop or a branch runs: of a stack, the slice that an iteration touches counts."""
    hlo, jaxpr = HloBuilder(backend, templates), body.jaxpr
    listing, slot_of = listing_of(jaxpr)
    at = [hlo.make_input(var) for var in listing.inputs]
    for k, var in enumerate(jaxpr.invars[body.own_inputs :], len(jaxpr.constvars) + body.own_inputs):
        at[k] = _slice_of(hlo, at[k], var)
    _run(hlo, listing, at, None)
    op_of = {var: hlo.found(slot, at) for var, slot in slot_of.items() if isinstance(slot, int)}
    outputs = [hlo.in_order(op_of[v]) for v in jaxprs.vars_of(jaxpr.outvars[: body.own_outputs])]
    stacked = [_stacked(hlo, hlo.in_order(op_of[v]), v) for v in jaxprs.vars_of(jaxpr.outvars[body.own_outputs :])]
    return hlo.program([*outputs, *stacked], op_of)


def _slice_of(hlo: HloBuilder, stack: int, var: Var) -> int:
    return hlo.append(hlo.templates.like("dynamic_slice", var), (stack,), -1)


def _stacked(hlo: HloBuilder, read: int, var: Var) -> int:
    """What is written into a stack, in place."""
    return hlo.append(hlo.templates.like("dynamic_update_slice", var), (hlo.make_input(var), read), -1)


def _run(hlo: HloBuilder, listing: Listing, at: list[int], equation: int | None) -> None:
    """Lowers a listing; `at` holds the operations of its inputs, then those of all its variables.

    Args:
      listing: a program, or what one of its equations calls.
      at: one operation per variable.
      equation: the equation that calls it, None for the program itself.
    """
    outside = hlo.at, hlo.readers, hlo.is_inside
    hlo.at, hlo.readers, hlo.is_inside = at, functools.cache(listing.readers), True
    _lines(hlo, listing.lines, 0, equation)
    hlo.at, hlo.readers, hlo.is_inside = outside


def _lines(hlo: HloBuilder, lines: Sequence[Line], start: int, equation: int | None) -> None:
    """Lowers lines of a listing, the first of which has a number."""
    known, at = hlo.templates.facts, hlo.at
    for index, (eqn, like, reads) in enumerate(lines, start):
        hlo.equation = index if equation is None else equation
        if eqn is None:
            at += hlo.fenced(tuple(hlo.found(read, at) for read in reads), like)
        else:
            facts = known[eqn]
            rule = _RULES.get(facts.name)
            at += rule(hlo, facts, reads) if rule else _any(hlo, facts, reads)


def _call(hlo: HloBuilder, facts: Facts, reads: Sequence[Slot]) -> list[int]:
    assert facts.body is not None
    inner = [hlo.make_input(var) for var in facts.body.constvars]
    given, params = hlo.as_it_lies(facts, reads), facts.eqn.params
    fenced = params.get("prevent_cse", False) and params.get("differentiated", False)
    inner += hlo.fenced(given, facts.body.invars) if fenced is True else given
    _run(hlo, facts.listing, inner, hlo.equation)
    return [hlo.found(slot, inner) for slot in facts.listing.outputs]


def _barrier(hlo: HloBuilder, facts: Facts, reads: Sequence[Slot]) -> list[int]:
    return hlo.fenced(hlo.as_it_lies(facts, reads), facts.eqn.outvars)


def _split(hlo: HloBuilder, facts: Facts, reads: Sequence[Slot]) -> list[int]:
    slices = [hlo.templates.like("slice", var) for var in facts.eqn.outvars]
    made = [hlo.templates.merged(part, ("split", k, facts.params)) for k, part in enumerate(slices)]
    operands = hlo.operands(facts, reads)
    return [hlo.merge(part, operands) for part in made]


def _with_bodies(hlo: HloBuilder, facts: Facts, reads: Sequence[Slot]) -> list[int]:
    """What has several results, or runs bodies."""
    return _parts(hlo, facts, hlo.operands(facts, reads))


def _parts(hlo: HloBuilder, facts: Facts, operands: tuple[int, ...]) -> list[int]:
    base = hlo.append(facts.with_bodies, operands)
    return [hlo.append(hlo.templates.like("part", var), (base,)) for var in facts.eqn.outvars]


def _scanned(hlo: HloBuilder, facts: Facts, reads: Sequence[Slot]) -> list[int]:
    """A loop. What it stacks begins as zeros, which are written."""
    operands, (num_consts, num_carry) = hlo.operands(facts, reads), compat.scan_arity(facts.eqn)
    consts, carries = operands[:num_consts], operands[num_consts:][:num_carry]
    carries = tuple(_copied(hlo, carry) for carry in carries) if hlo.backend.breadth_first else carries
    stacks = [hlo.append(hlo.templates.like("broadcast", v), ()) for v in facts.eqn.outvars[num_carry:]]
    parts = _parts(hlo, facts, (*consts, *carries, *operands[num_consts + num_carry :], *stacks))
    begins = [*carries, *stacks]
    hlo.only_written |= {parts[k]: begins[k] for k in facts.only_written}
    hlo.takes_over |= _taken_over(hlo, parts, reads[num_consts:], carries) | dict(zip(parts[num_carry:], stacks))
    return parts


def _copied(hlo: HloBuilder, carry: int) -> int:
    """What a carry begins as: a constant is copied at the start of the program, for each loop by itself."""
    op = hlo.ops[carry]
    return carry if op.constant is None else hlo.append(op, (), -1)


def _taken_over(hlo: HloBuilder, parts: Sequence[int], slots: Sequence[Slot], carries: Sequence[int]) -> dict[int, int]:
    """The carries that no one else reads: a scan's results live in their buffers. Carries that start as the same
    constant share its buffer no longer; the first takes it."""
    taken: dict[int, int] = {}
    for part, slot, read in zip(parts, slots, carries):
        op = hlo.ops[read]
        if (op.constant is not None or hlo.is_read_once(slot)) and read not in taken.values() and op.kind != "input":
            taken[part] = read
    return taken


def _any(hlo: HloBuilder, facts: Facts, reads: Sequence[Slot]) -> list[int]:
    if len(facts.eqn.outvars) != 1:
        return _with_bodies(hlo, facts, reads)
    return [_usual(hlo, facts, hlo.operands(facts, reads))]


def _usual(hlo: HloBuilder, facts: Facts, reads: tuple[int, ...]) -> int:
    if facts.eqn.effects:
        return hlo.append(facts.op(facts.name), reads)
    return hlo.merge(facts.usual, reads)


def _aliased(hlo: HloBuilder, facts: Facts, reads: Sequence[Slot]) -> list[int]:
    read = hlo.operand(facts, 0, reads[0], facts.shape)
    constant = hlo.ops[read].constant
    if constant is not None:
        return [hlo.spread(constant, facts)]
    stays = isinstance(read, View) and read.has_shape(facts.shape)
    return [read if stays else hlo.in_order(read)]


def _broadcast(hlo: HloBuilder, facts: Facts, reads: Sequence[Slot]) -> list[int]:
    read = hlo.operand(facts, 0, reads[0], facts.shape)
    op = hlo.ops[read]
    if op.constant is not None:
        return [hlo.spread(op.constant, facts)]
    return [read if op.elements == facts.elements else hlo.merge(facts.usual, (int(read),))]


def _concatenated(hlo: HloBuilder, facts: Facts, reads: Sequence[Slot]) -> list[int]:
    template = facts.template("concatenate", facts.params, joins=facts.eqn.params["dimension"])
    return [hlo.merge(template, hlo.operands(facts, reads))]


def _padded(hlo: HloBuilder, facts: Facts, reads: Sequence[Slot]) -> list[int]:
    """What is filled up, then cut where less than nothing is added (`algebraic_simplifier.cc`)."""
    operands, config = hlo.operands(facts, reads), facts.eqn.params["padding_config"]
    if all(low >= 0 and high >= 0 for low, high, _ in config):
        return [_usual(hlo, facts, operands)]
    filled = tuple(size - min(low, 0) - min(high, 0) for size, (low, high, _) in zip(facts.shape, config))
    whole = operands[0]
    if filled != shape_of(facts.eqn.invars[0]):
        whole = hlo.merge(hlo.templates.resized(facts.usual.op, "pad", filled, facts.params), operands)
    return [hlo.merge(facts.template("slice", facts.params), (whole,))]


def _indexed(hlo: HloBuilder, facts: Facts, reads: Sequence[Slot]) -> list[int]:
    """What is read or written at indices. Those of batches are counted, and joined with the others
    (`gather_scatter_utils.cc`, `batched_gather_scatter_normalizer.cc`). They are looked up wherever they lie."""
    given, *others = hlo.as_it_lies(facts, reads)
    index, *updates = map(hlo.in_order, others)
    if batches := len(facts.eqn.params["dimension_numbers"].operand_batching_dims):
        *places, length = shape_of(facts.eqn.invars[1])
        key = "indices", facts.params
        whole = hlo.templates.resized(hlo.ops[index], "concatenate", (*places, length + batches), key)
        index = hlo.merge(whole, (index,))
    made = _usual(hlo, facts, (int(given), index, *updates))
    if not updates or not isinstance(given, View):
        return [made]
    hlo.ops[made] = hlo.templates.changed(hlo.ops[made], shape=given.sizes)
    return [given.of(made)]


def _rounded(hlo: HloBuilder, facts: Facts, reads: Sequence[Slot]) -> list[int]:
    return (_aliased if facts.once(_rounds_nothing) else elementwise)(hlo, facts, reads)


def _rounds_nothing(rounding: Eqn) -> bool:
    """Whether as many bits are asked for as there are: so JAX marks what a checkpoint saves."""
    float_bits = jnp.finfo(jaxprs.dtype_of(rounding.outvars[0]))
    asked = rounding.params["exponent_bits"], rounding.params["mantissa_bits"]
    return asked == (float_bits.nexp, float_bits.nmant)


def _transferred(hlo: HloBuilder, facts: Facts, reads: Sequence[Slot]) -> list[int]:
    """Copies over the link; from the host they are element-wise work where kernels read the host's memory."""
    eqn = facts.eqn
    if not hlo.backend.reads_host or not any(map(jaxprs.is_on_host, eqn.invars)):
        return _any(hlo, facts, reads)
    operands = hlo.operands(facts, reads)
    return [hlo.append(hlo.templates.like("copy", v), (read,)) for v, read in zip(eqn.outvars, operands)]


def _random_bits(hlo: HloBuilder, facts: Facts, reads: Sequence[Slot]) -> list[int]:
    operands = hlo.operands(facts, reads)
    return [_threefry(hlo, facts, operands[0]) if hlo.backend.rolls_threefry else _usual(hlo, facts, operands)]


def _threefry(hlo: HloBuilder, facts: Facts, key: int) -> int:
    """Random bits as a loop over rounds that makes both halves of every number of the halves before, which begin as
    counts; they are joined where they are read."""
    half = Op("random_bits", facts.shape, "uint32", 4 * facts.elements)
    reads: tuple[int, ...] = (key,)
    for name in ("count", "half"):
        both = [hlo.templates.merged(half, (name, k, facts.params)) for k in range(2)]
        reads = tuple(hlo.merge(each, reads) for each in both)
    return hlo.merge(facts.template("xor"), reads)


_RULES: dict[str, Callable[[HloBuilder, Facts, Sequence[Slot]], list[int]]] = {
    **dict.fromkeys(LOOPS, _with_bodies),
    **dict.fromkeys(ELEMENTWISE, elementwise),
    **dict.fromkeys(ALIASING, _aliased),
    **dict.fromkeys(REDUCTIONS, reduced),
    **dict.fromkeys((*CALLS, *CHECKPOINTS, *OWN_RULES), _call),
    "broadcast_in_dim": _broadcast,
    "concatenate": _concatenated,
    "conv_general_dilated": conv,
    "dot_general": dot,
    **dict.fromkeys(("gather", *SCATTERS), _indexed),
    "optimization_barrier": _barrier,
    "pad": _padded,
    "device_put": _transferred,
    "random_bits": _random_bits,
    "reduce_precision": _rounded,
    "scan": _scanned,
    **dict.fromkeys(WINDOWS, window),
    "select_and_scatter_add": pooled_back,
    "split": _split,
    "transpose": transposed,
}
