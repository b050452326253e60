"""Between which numbers the integers of a program lie, whatever its inputs are: intervals, equation by equation.

What is not understood, or may wrap around, lies between the bounds of its dtype. Constants that a program carries count
as inputs: equal programs may differ in them.
"""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import GatherScatterMode

from jaxremat.base import compat
from jaxremat.base.compat import Atom, Eqn, Jaxpr, Literal, Var
from jaxremat.trace import jaxpr as jaxprs


class Bounds(NamedTuple):
    """The least and the largest number that an integer may be; a bool is 0 or 1."""

    low: int
    high: int

    @property
    def is_natural(self) -> bool:
        """Whether no number is negative."""
        return self.low >= 0

    def within(self, other: Bounds) -> bool:
        """Whether all numbers lie between the other bounds."""
        return other.low <= self.low and self.high <= other.high


Known = Bounds | None
"""None for what is no array of integers."""


def bounds_in(jaxpr: Jaxpr, inputs: Sequence[Known] | None = None) -> dict[Var, Bounds]:
    """Bounds of all integers and bools of a program, its inputs included, loops and calls as one equation each.

    Args:
      jaxpr: the program.
      inputs: what is known of its inputs; by default, their dtypes.
    """
    env: dict[Var, Bounds] = {}

    def note(variables: Sequence[Var], known: Sequence[Known]) -> None:
        env.update((v, bounds) for v, bounds in zip(variables, known, strict=True) if bounds is not None)

    note(jaxpr.constvars, [_of_type(v) for v in jaxpr.constvars])
    note(jaxpr.invars, [_of_type(v) for v in jaxpr.invars] if inputs is None else inputs)
    for eqn in jaxpr.eqns:
        if any(_of_type(v) is not None for v in eqn.outvars):
            note(eqn.outvars, _made(eqn, [_at(env, atom) for atom in eqn.invars]))
    return env


def _at(env: Mapping[Var, Bounds], atom: Atom) -> Known:
    if not isinstance(atom, Literal):
        return env.get(atom)
    return None if _of_type(atom) is None else Bounds(int(np.min(atom.val)), int(np.max(atom.val)))


def _of_type(atom: Atom) -> Known:
    return _of_dtype(getattr(atom.aval, "dtype", None))


@functools.cache
def _of_dtype(dtype: Any) -> Known:
    if dtype is None or jnp.issubdtype(dtype, jax.dtypes.extended):
        return None
    if dtype == jnp.bool_:
        return Bounds(0, 1)
    if not jnp.issubdtype(dtype, jnp.integer):
        return None
    return Bounds(int(jnp.iinfo(dtype).min), int(jnp.iinfo(dtype).max))


def _made(eqn: Eqn, reads: Sequence[Known]) -> Sequence[Known]:
    """Bounds of each result; of its dtype where nothing better is known, or where numbers wrap around."""
    name = compat.primitive_name(eqn)
    types = [_of_type(v) for v in eqn.outvars]
    through = _BODIES.get(name) or (_called if jaxprs.computed_body(eqn) is not None else None)
    if through is not None:
        found = through(eqn, reads)
    elif name in _SEVERAL:
        found = _SEVERAL[name](eqn, reads)
    else:
        rule = _RULES.get(name)
        found = [rule(eqn, reads) if rule else None, *[None] * (len(types) - 1)]
    return [kind if kind is None or got is None or not got.within(kind) else got for kind, got in zip(types, found)]


def _joined(known: Sequence[Known]) -> Known:
    """What holds all of them; None where one is not known."""
    found = [bounds for bounds in known if bounds is not None]
    if len(found) < len(known) or not found:
        return None
    return Bounds(min(bounds.low for bounds in found), max(bounds.high for bounds in found))


def _corners(combine: Callable[[int, int], int], a: Bounds, b: Bounds) -> Bounds:
    """Of what grows or falls in each of two numbers while the other stays."""
    ends = [combine(x, y) for x, y in itertools.product(a, b)]
    return Bounds(min(ends), max(ends))


def _monotone(combine: Callable[[Any], int], known: Sequence[Bounds]) -> Bounds:
    """Of what never falls in any number."""
    return Bounds(combine([bounds.low for bounds in known]), combine([bounds.high for bounds in known]))


# Rules of one result: from the equation and what is known of what it reads, to what is known of the result.

Rule = Callable[[Eqn, Sequence[Any]], Known]


def _of_all(rule: Callable[..., Known]) -> Rule:
    """A rule of integers alone."""
    return lambda eqn, reads: None if any(bounds is None for bounds in reads) else rule(*reads)


def _first(eqn: Eqn, reads: Sequence[Known]) -> Known:
    return reads[0]


def _first_two(eqn: Eqn, reads: Sequence[Known]) -> Known:
    return _joined(reads[:2])


def _any_of_them(eqn: Eqn, reads: Sequence[Known]) -> Known:
    return _joined(reads)


def _counted(length: int) -> Bounds:
    return Bounds(0, max(length - 1, 0))


def _iota(eqn: Eqn, reads: Sequence[Known]) -> Known:
    return _counted(eqn.params["shape"][eqn.params["dimension"]])


def _index_of_extreme(eqn: Eqn, reads: Sequence[Known]) -> Known:
    (axis,) = eqn.params["axes"]
    return _counted(_shape(eqn.invars[0])[axis])


def _shape(atom: Atom) -> tuple[int, ...]:
    aval: Any = atom.aval
    return aval.shape


def _selected(eqn: Eqn, reads: Sequence[Known]) -> Known:
    which, cases = reads[0], reads[1:]
    if which is None:
        return None
    return _joined(cases[max(which.low, 0) : which.high + 1])


def _compared(is_true: Callable[[Bounds, Bounds], bool], is_false: Callable[[Bounds, Bounds], bool]) -> Rule:
    def rule(a: Bounds, b: Bounds) -> Bounds:
        return Bounds(int(is_true(a, b)), int(not is_false(a, b)))

    return _of_all(rule)


def _all_less(a: Bounds, b: Bounds) -> bool:
    return a.high < b.low


def _none_greater(a: Bounds, b: Bounds) -> bool:
    return a.high <= b.low


def _same_number(a: Bounds, b: Bounds) -> bool:
    return a == b and a.low == a.high


def _apart(a: Bounds, b: Bounds) -> bool:
    return _all_less(a, b) or _all_less(b, a)


def _swapped(test: Callable[[Bounds, Bounds], bool]) -> Callable[[Bounds, Bounds], bool]:
    return lambda a, b: test(b, a)


def _remainder(a: Bounds, b: Bounds) -> Bounds:
    """Of the sign of the dividend; of a division by zero XLA gives the dividend."""
    most = max(abs(a.low), abs(a.high))
    if not b.low <= 0 <= b.high:
        most = min(most, max(abs(b.low), abs(b.high)) - 1)
    return Bounds(0 if a.is_natural else -most, 0 if a.high <= 0 else most)


def _quotient(a: Bounds, b: Bounds) -> Known:
    return _corners(_towards_zero, a, b) if b.low > 0 else None


def _towards_zero(a: int, b: int) -> int:
    return a // b if a >= 0 else -(-a // b)


def _power(eqn: Eqn, reads: Sequence[Known]) -> Known:
    base, exponent = reads[0], eqn.params["y"]
    if base is None or exponent < 0:
        return None
    ends = [base.low**exponent, base.high**exponent, *([0**exponent] if base.low <= 0 <= base.high else [])]
    return Bounds(min(ends), max(ends))


def _magnitude(a: Bounds) -> Bounds:
    least = 0 if a.low <= 0 <= a.high else min(abs(a.low), abs(a.high))
    return Bounds(least, max(abs(a.low), abs(a.high)))


def _sign(a: Bounds) -> Bounds:
    return _monotone(lambda numbers: (numbers[0] > 0) - (numbers[0] < 0), [a])


def _common_bits(a: Bounds, b: Bounds) -> Known:
    naturals = [bounds.high for bounds in (a, b) if bounds.is_natural]
    return Bounds(0, min(naturals)) if naturals else None


def _any_bits(a: Bounds, b: Bounds) -> Known:
    return Bounds(0, (1 << max(a.high, b.high).bit_length()) - 1) if a.is_natural and b.is_natural else None


def _complement(eqn: Eqn, reads: Sequence[Known]) -> Known:
    a, kind = reads[0], _of_type(eqn.outvars[0])
    return None if a is None or kind is None else Bounds(kind.low + kind.high - a.high, kind.low + kind.high - a.low)


def _shifted_left(eqn: Eqn, reads: Sequence[Known]) -> Known:
    a, by = reads
    if a is None or by is None or by.low < 0 or by.high >= _num_bits(eqn.outvars[0]):
        return None
    return _corners(operator.lshift, a, by)


def _shifted_right(eqn: Eqn, reads: Sequence[Known]) -> Known:
    """Of unsigned numbers too the first bit is repeated."""
    a, by = reads
    if a is None or by is None or by.low < 0 or a.high >= 1 << (_num_bits(eqn.outvars[0]) - 1):
        return None
    return _corners(operator.rshift, a, by)


def _shifted_right_as_bits(eqn: Eqn, reads: Sequence[Known]) -> Known:
    a, by = reads
    if a is None or by is None or by.low < 0:
        return None
    return _corners(operator.rshift, a if a.is_natural else Bounds(0, (1 << _num_bits(eqn.outvars[0])) - 1), by)


def _num_bits(atom: Atom) -> int:
    return int(jnp.iinfo(jaxprs.dtype_of(atom)).bits) if jaxprs.dtype_of(atom) != jnp.bool_ else 1


def _number_of_bits(eqn: Eqn, reads: Sequence[Known]) -> Known:
    return Bounds(0, _num_bits(eqn.invars[0]))


def _reduced(eqn: Eqn, reads: Sequence[Known]) -> Known:
    return reads[0] if _reduced_length(eqn) else None


def _summed(eqn: Eqn, reads: Sequence[Known]) -> Known:
    """Sums that fit are right, even where those of some of the numbers wrap around."""
    length, a = _reduced_length(eqn), reads[0]
    return None if a is None else Bounds(a.low * length, a.high * length)


def _reduced_length(eqn: Eqn) -> int:
    return int(np.prod([_shape(eqn.invars[0])[axis] for axis in eqn.params["axes"]], dtype=np.int64))


def _summed_up(eqn: Eqn, reads: Sequence[Known]) -> Known:
    length, a = _shape(eqn.invars[0])[eqn.params["axis"]], reads[0]
    return None if a is None else Bounds(min(a.low, a.low * length), max(a.high, a.high * length))


def _gathered(eqn: Eqn, reads: Sequence[Known]) -> Known:
    """Of the operand; of what lies outside of it, what fills the place."""
    operand, indices = reads
    params = eqn.params
    if GatherScatterMode.from_any(params["mode"]) != GatherScatterMode.FILL_OR_DROP:
        return operand
    along, sizes = params["dimension_numbers"].start_index_map, params["slice_sizes"]
    room = min((_shape(eqn.invars[0])[axis] - sizes[axis] for axis in along), default=0)
    if indices is not None and indices.within(Bounds(0, room)):
        return operand
    fill = params["fill_value"]
    return None if fill is None else _joined([operand, Bounds(int(fill), int(fill))])


def _written_into(eqn: Eqn, reads: Sequence[Known]) -> Known:
    return _joined([reads[0], reads[2]])


_OF_WHAT_IT_READS = (
    *("broadcast", "broadcast_in_dim", "reshape", "squeeze", "expand_dims", "transpose", "rev"),
    *("slice", "dynamic_slice", "cummax", "cummin", "convert_element_type", "copy", "copy_p", "name", "stop_gradient"),
    *("sharding_constraint", "pvary", "device_put", "all_gather", "all_to_all"),
)

_RULES: dict[str, Rule] = {
    **dict.fromkeys(_OF_WHAT_IT_READS, _first),
    **dict.fromkeys(("pad", "dynamic_update_slice"), _first_two),
    **dict.fromkeys(("argmax", "argmin"), _index_of_extreme),
    **dict.fromkeys(("add", "add_any"), _of_all(lambda a, b: _monotone(sum, [a, b]))),
    **dict.fromkeys(("or", "xor"), _of_all(_any_bits)),
    **dict.fromkeys(("population_count", "clz"), _number_of_bits),
    **dict.fromkeys(("reduce_max", "reduce_min"), _reduced),
    "concatenate": _any_of_them,
    "iota": _iota,
    "select_n": _selected,
    "gather": _gathered,
    "scatter": _written_into,
    "reduce_sum": _summed,
    "cumsum": _summed_up,
    "sub": _of_all(lambda a, b: _corners(operator.sub, a, b)),
    "mul": _of_all(lambda a, b: _corners(operator.mul, a, b)),
    "neg": _of_all(lambda a: Bounds(-a.high, -a.low)),
    "abs": _of_all(_magnitude),
    "sign": _of_all(_sign),
    "max": _of_all(lambda a, b: _monotone(max, [a, b])),
    "min": _of_all(lambda a, b: _monotone(min, [a, b])),
    "clamp": _of_all(lambda least, a, most: _monotone(min, [_monotone(max, [a, least]), most])),
    "rem": _of_all(_remainder),
    "div": _of_all(_quotient),
    "square": _of_all(lambda a: _corners(operator.mul, _magnitude(a), _magnitude(a))),
    "integer_pow": _power,
    "and": _of_all(_common_bits),
    "not": _complement,
    "shift_left": _shifted_left,
    "shift_right_arithmetic": _shifted_right,
    "shift_right_logical": _shifted_right_as_bits,
    "lt": _compared(_all_less, _swapped(_none_greater)),
    "le": _compared(_none_greater, _swapped(_all_less)),
    "gt": _compared(_swapped(_all_less), _none_greater),
    "ge": _compared(_swapped(_none_greater), _all_less),
    "eq": _compared(_same_number, _apart),
    "ne": _compared(_apart, _same_number),
}


def _each(eqn: Eqn, reads: Sequence[Known]) -> Sequence[Known]:
    return reads


def _largest(eqn: Eqn, reads: Sequence[Known]) -> Sequence[Known]:
    operand = _shape(eqn.invars[0])
    return [reads[0], _counted(operand[eqn.params.get("axis", len(operand) - 1)])]


def _parts(eqn: Eqn, reads: Sequence[Known]) -> Sequence[Known]:
    return [reads[0]] * len(eqn.outvars)


_SEVERAL: dict[str, Callable[[Eqn, Sequence[Known]], Sequence[Known]]] = {
    "sort": _each,
    "optimization_barrier": _each,
    "top_k": _largest,
    "split": _parts,
}
"""Rules of several results."""


def _through(jaxpr: Jaxpr, inputs: Sequence[Known]) -> list[Known]:
    env = bounds_in(jaxpr, inputs)
    return [_at(env, atom) for atom in jaxpr.outvars]


def _called(eqn: Eqn, reads: Sequence[Known]) -> Sequence[Known]:
    body = jaxprs.computed_body(eqn)
    assert body is not None
    return _through(body, reads)


def _branched(eqn: Eqn, reads: Sequence[Known]) -> Sequence[Known]:
    return [_joined(each) for each in zip(*(_through(branch, reads[1:]) for branch in eqn.params["branches"]))]


def _scanned(eqn: Eqn, reads: Sequence[Known]) -> Sequence[Known]:
    consts, carries = compat.scan_arity(eqn)
    carry, results = _repeated(eqn.params["jaxpr"], reads[:consts], reads[consts:][:carries], reads[consts + carries :])
    return [*carry, *results]


def _while(eqn: Eqn, reads: Sequence[Known]) -> Sequence[Known]:
    skipped, consts = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    given = reads[skipped:]
    return _repeated(eqn.params["body_jaxpr"], given[:consts], given[consts:], ())[0]


def _repeated(
    body: Jaxpr, consts: Sequence[Known], carry: Sequence[Known], slices: Sequence[Known]
) -> tuple[Sequence[Known], Sequence[Known]]:
    """(what is carried in any iteration, what each gives): a carry that leaves its bounds has none."""
    types = [_of_type(v) for v in body.invars[len(consts) :]]
    while True:
        made = _through(body, [*consts, *carry, *slices])
        stays = [a is None or (b is not None and b.within(a)) for a, b in zip(carry, made)]
        if all(stays):
            return carry, made[len(carry) :]
        carry = [known if stay else kind for known, stay, kind in zip(carry, stays, types)]


_BODIES: dict[str, Callable[[Eqn, Sequence[Known]], Sequence[Known]]] = {
    "cond": _branched,
    "scan": _scanned,
    "while": _while,
    "shard_map": lambda eqn, reads: _through(eqn.params["jaxpr"], reads),
}
