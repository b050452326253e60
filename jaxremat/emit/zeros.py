"""Zeros that something is scattered into, or written into, in place.

They depend on nothing, so a compiler may well make them long before: XLA:GPU orders what a scatter reads operand by
operand, zeros first, and on an H200 those of a U-Net's backward lay beside its peak, 84 of 337 MiB. Made from a number
that has passed the barrier of a stretch, they are made in that stretch: those that are written first. Of others, and
where a stretch has no barrier, the number waits for the last buffer on the way to what is written.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Container, Iterator, Mapping, Sequence

from jaxremat.base import compat
from jaxremat.base.compat import Eqn, Literal, Var
from jaxremat.trace import jaxpr as jaxprs
from jaxremat.trace.joint import Joint
from jaxremat.trace.late_writes import summed, written_into
from jaxremat.trace.primitives import MADE_WHERE_READ
from jaxremat.trace.round_trips import is_way_back


@dataclasses.dataclass(frozen=True, eq=False)
class Zeros:
    """One array of them, or of another number.

    Attributes:
      eqn: what makes them in the program.
      number: what they are made from.
      seed: stands for the number behind a barrier.
      seeded: makes them from the seed.
    """

    eqn: Eqn
    number: Literal
    seed: Var
    seeded: Eqn


def zeros_written_into(joint: Joint) -> dict[Var, Zeros]:
    """The arrays of one number, by their variables, that equations of a program write into."""
    sums = summed(joint.eqns)
    spread = {eqn.outvars[0]: eqn for eqn in joint.constants if eqn.invars and isinstance(eqn.invars[0], Literal)}
    return {
        var: _seeded(spread[var])
        for eqn in joint.eqns
        for var in written_into(eqn)
        if var in spread and eqn.outvars[0] not in sums
    }


def _with_own_zeros(eqns: Sequence[Eqn], zeros: Mapping[Var, Zeros]) -> tuple[tuple[Eqn, ...], tuple[Var, ...]]:
    """(equations of a stretch with what makes zeros right before they are written into, the seeds that they read)."""
    out: list[Eqn] = []
    seeds: dict[Var, None] = {}
    for eqn in eqns:
        for made in (zeros[var] for var in written_into(eqn) if var in zeros):
            out += [made.seeded] if made.seed not in seeds else []
            seeds[made.seed] = None
        out.append(eqn)
    return tuple(out), tuple(seeds)


def parts_with_own_zeros(
    eqns: Sequence[Eqn], zeros: Mapping[Var, Zeros], given: Container[Var], *, has_barrier: bool = False
) -> Iterator[tuple[tuple[Eqn, ...], tuple[Var, ...]]]:
    """A stretch in parts, and what goes through a barrier before each: what its zeros wait for, the seeds of those, and
    what comes back of another form in it, which would else be there as soon.

    Args:
      eqns: the stretch.
      zeros: what is written into.
      given: what the program begins with.
      has_barrier: whether the stretch has one of its own, which seeds alone go through.
    """
    ties = _ties(eqns, zeros, given, has_barrier=has_barrier)
    for first, end in itertools.pairwise(sorted({0, *ties, len(eqns)})):
        part, seeds = _with_own_zeros(eqns[first:end], zeros) if first in ties else (tuple(eqns[first:end]), ())
        ways_back = filter(is_way_back, part) if first else ()
        waiting = [var for eqn in ways_back for var in jaxprs.vars_of(eqn.invars)]
        yield part, tuple(dict.fromkeys((*ties.get(first, ()), *waiting, *seeds)))


def _ties(
    eqns: Sequence[Eqn], zeros: Mapping[Var, Zeros], given: Container[Var], *, has_barrier: bool
) -> dict[int, dict[Var, None]]:
    """By the place of the equation before which a barrier stands, the buffers that what is written into zeros waits for
    anyway. Where all that is written was given to the program there is none. A stretch's own barrier holds the zeros
    that are written first, and those that wait for nothing in the stretch."""
    ties: dict[int, dict[Var, None]] = {}
    makers = {var: place for place, eqn in enumerate(eqns) for var in eqn.outvars}
    for eqn in eqns:
        if not zeros.keys().isdisjoint(written_into(eqn)):
            place, tie = max(_buffers_on_the_way(eqn, eqns, makers), default=(0, None), key=lambda found: found[0])
            if has_barrier and not (place and ties):
                ties.setdefault(0, {})
            elif tie is not None and (place or tie not in given):
                ties.setdefault(place, {})[tie] = None
    return ties


def _buffers_on_the_way(writer: Eqn, eqns: Sequence[Eqn], makers: Mapping[Var, int]) -> Iterator[tuple[int, Var]]:
    """(how many of some equations run until it is there, a buffer) that an equation, or what may be computed with it,
    reads besides what it writes into."""
    waiting = [var for var in jaxprs.vars_of(writer.invars) if var not in written_into(writer)]
    seen = {*waiting}
    while waiting:
        var = waiting.pop()
        place = makers.get(var)
        if place is None or not (eqns[place].primitive.name in MADE_WHERE_READ or is_way_back(eqns[place])):
            yield (0 if place is None else place + 1), var
            continue
        read = [each for each in jaxprs.vars_of(eqns[place].invars) if each not in seen]
        seen.update(read)
        waiting += read


def _seeded(eqn: Eqn) -> Zeros:
    (number,) = eqn.invars
    assert isinstance(number, Literal)  # of what spreads a number
    seed = compat.variable_like(number)
    return Zeros(eqn, number, seed, compat.rewired(eqn, [seed], list(eqn.outvars)))
