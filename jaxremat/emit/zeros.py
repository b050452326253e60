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
from jaxremat.trace.joint import Joint
from jaxremat.trace.late_writes import summed, written_into


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
