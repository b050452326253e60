"""Zeros that something is scattered into, or written into, in place.

They depend on nothing, so a compiler may well make them long before: XLA:GPU orders what a scatter reads operand by
operand, zeros first, and on an H200 those of a U-Net's backward lay beside its peak, 84 of 337 MiB. Made from a number
that has passed the barrier of a stretch, they are made in that stretch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from jaxremat.base import compat
from jaxremat.base.compat import Eqn, Literal, Var
from jaxremat.trace import jaxpr as jaxprs
from jaxremat.trace.joint import Joint

_SUMS = frozenset({"add", "add_any"})  # with zeros that are scattered into: XLA scatters into the other one


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
    summed = {v for eqn in joint.eqns if eqn.primitive.name in _SUMS for v in jaxprs.vars_of(eqn.invars)}
    spread = {eqn.outvars[0]: eqn for eqn in joint.constants if eqn.invars and isinstance(eqn.invars[0], Literal)}
    return {
        var: _seeded(spread[var])
        for eqn in joint.eqns
        for var in written_into(eqn)
        if var in spread and eqn.outvars[0] not in summed
    }


def written_into(eqn: Eqn) -> tuple[Var, ...]:
    """What an equation writes into, where it has only to copy the rest."""
    name = eqn.primitive.name
    into = eqn.invars[:1] if name == "dynamic_update_slice" or name.startswith("scatter") else []
    return tuple(jaxprs.vars_of(into))


def with_own_zeros(eqns: Sequence[Eqn], zeros: dict[Var, Zeros]) -> tuple[tuple[Eqn, ...], tuple[Var, ...]]:
    """(equations of a stretch with what makes zeros right before they are written into, the seeds that they read)."""
    out: list[Eqn] = []
    seeds: dict[Var, None] = {}
    for eqn in eqns:
        for made in (zeros[var] for var in written_into(eqn) if var in zeros):
            out += [made.seeded] if made.seed not in seeds else []
            seeds[made.seed] = None
        out.append(eqn)
    return tuple(out), tuple(seeds)


def _seeded(eqn: Eqn) -> Zeros:
    (number,) = eqn.invars
    assert isinstance(number, Literal)  # of what spreads a number
    seed = compat.variable_like(number)
    return Zeros(eqn, number, seed, compat.rewired(eqn, [seed], list(eqn.outvars)))
