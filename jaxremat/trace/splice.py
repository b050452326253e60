"""Programs put together from the equations of others: what was traced once is not traced again.

The result is the program that evaluating the same equations under `jax.make_jaxpr` gives, in a small part of its time:
an equation keeps its primitive, parameters and place in the source, and only reads and makes other variables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from jaxremat.base import compat
from jaxremat.base.compat import Atom, Eqn, Jaxpr, Literal, Var

Env = dict[Var, Atom]
"""What stands for each variable of a source in the program that is being put together."""


class Puts[Stand](Protocol):
    """What equations are put into, one after another; something stands there for each variable."""

    @property
    def inputs(self) -> dict[Var, Stand | Literal]:
        """What stands for the inputs."""

    def put(self, eqn: Eqn, env: dict[Var, Stand | Literal]) -> None:
        """Adds an equation, and what stands for its results to `env`."""

    def put_barrier(self, variables: Sequence[Var], env: dict[Var, Stand | Literal]) -> dict[Var, Stand | Literal]:
        """Adds an optimization barrier; returns what stands for the variables behind it."""


class Splice:
    """A program under way.

    Args:
      like: a program with the same inputs, constants and number of results.
    """

    def __init__(self, like: Jaxpr) -> None:
        self._like = like
        self._constants: dict[int, tuple[Atom, object]] = {
            id(value): (var, value) for var, value in zip(like.constvars, compat.consts_of(like))
        }
        self._eqns: list[Eqn] = []

    @property
    def inputs(self) -> Env:
        """The inputs and constants of the program, each standing for itself."""
        return {var: var for var in (*self._like.constvars, *self._like.invars)}

    def constants_of(self, jaxpr: Jaxpr) -> Env:
        """The constants of a program that is put in; equal ones are one, numbers are literals."""
        pairs = zip(jaxpr.constvars, compat.consts_of(jaxpr))
        return {var: self._constants.setdefault(id(value), (compat.constant(value), value))[0] for var, value in pairs}

    def put(self, eqn: Eqn, env: Env, within: Any = ()) -> None:
        """Adds an equation, within a name stack, and what stands for its results to `env`."""
        reads = [at(env, atom) for atom in eqn.invars]
        folded = compat.folded(eqn, reads)
        if folded is not None:
            env.update(zip(eqn.outvars, folded))
            return
        made = [compat.variable_like(var) for var in eqn.outvars]
        env.update(zip(eqn.outvars, made))
        self._eqns.append(compat.rewired(eqn, reads, made, within))

    def put_barrier(self, variables: Sequence[Var], env: Env) -> Env:
        """Adds an optimization barrier; returns what stands for the variables behind it."""
        eqn = compat.barrier([at(env, var) for var in variables])
        self._eqns.append(eqn)
        return dict(zip(variables, eqn.outvars))

    def program(self, results: Sequence[Atom]) -> Jaxpr:
        """The program that returns some of the atoms."""
        constants = {atom: value for atom, value in self._constants.values() if isinstance(atom, Var)}
        return compat.assembled(self._like, self._eqns, results, constants)


def at[T](env: Mapping[Var, T], atom: Atom) -> T | Literal:
    """What stands for an atom; a literal for itself."""
    return atom if isinstance(atom, Literal) else env[atom]
