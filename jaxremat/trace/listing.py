"""Programs put together from the equations of others, in numbers: nothing is copied, and no variable is made.

What `Splice` makes is a program that can be run; what a model of a compiler reads is this, in a small part of its time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from jaxremat.base.compat import Eqn, Jaxpr, Literal, Var
from jaxremat.trace.splice import at

Slot = int | Literal
"""The number of a variable in the order in which they are made; a literal for itself."""


class Line(NamedTuple):
    """One equation.

    Attributes:
      eqn: the equation of the source; None for a barrier.
      like: variables of the source that its results are like; they have the next numbers.
      reads: what it reads.
    """

    eqn: Eqn | None
    like: Sequence[Var]
    reads: list[Slot]


class Listing:
    """A program under way.

    Args:
      like: a program with the same inputs and constants; they have the first numbers.

    Attributes:
      lines: the program.
      outputs: what it returns.
    """

    def __init__(self, like: Jaxpr) -> None:
        self._inputs = (*like.constvars, *like.invars)
        self.lines: list[Line] = []
        self.outputs: list[Slot] = []
        self.number_of_variables = len(self._inputs)

    @property
    def inputs(self) -> dict[Var, Slot]:
        """The numbers of constants and inputs, in their order."""
        return {var: number for number, var in enumerate(self._inputs)}

    @property
    def sources(self) -> list[Eqn]:
        """The equation that each line stems from; a barrier counts as the equation that follows it."""
        found: list[Eqn] = []
        following: Eqn | None = None
        for line in reversed(self.lines):
            following = line.eqn or following
            found += [following] if following else []
        return found[::-1]

    def put(self, eqn: Eqn, env: dict[Var, Slot]) -> None:
        """Adds an equation, and what stands for its results to `env`."""
        reads = [atom if isinstance(atom, Literal) else env[atom] for atom in eqn.invars]
        self._add(Line(eqn, eqn.outvars, reads), env)

    def put_barrier(self, variables: Sequence[Var], env: dict[Var, Slot]) -> dict[Var, Slot]:
        """Adds an optimization barrier; returns what stands for the variables behind it."""
        behind: dict[Var, Slot] = {}
        self._add(Line(None, variables, [env[var] for var in variables]), behind)
        return behind

    def _add(self, line: Line, env: dict[Var, Slot]) -> None:
        self.lines.append(line)
        for var in line.like:
            env[var] = self.number_of_variables
            self.number_of_variables += 1

    def readers(self) -> list[int]:
        """For each variable, how often it is read or returned."""
        counts = [0] * self.number_of_variables
        for reads in (*(line.reads for line in self.lines), self.outputs):
            for slot in reads:
                if type(slot) is int:
                    counts[slot] += 1
        return counts


def listing_of(jaxpr: Jaxpr) -> tuple[Listing, dict[Var, Slot]]:
    """A whole program, and the numbers of its variables."""
    listing = Listing(jaxpr)
    env = listing.inputs
    for eqn in jaxpr.eqns:
        listing.put(eqn, env)
    listing.outputs = [at(env, atom) for atom in jaxpr.outvars]
    return listing, env
