"""A flat program with some of its equations run in another way, and its loops' bodies as programs of their own."""

from __future__ import annotations

import collections
from collections.abc import Callable, Mapping
from typing import Any

import jax

from jaxremat.base import compat
from jaxremat.base.compat import Eqn, Jaxpr, Var
from jaxremat.trace import jaxpr as jaxprs
from jaxremat.trace.primitives import LOOPS

Bodies = Mapping[tuple[int, int], Jaxpr]
"""By (equation, which of its bodies)."""

Replacements = Mapping[Var, Callable[[list[Any]], list[Any]]]
"""What runs in place of equations, from their inputs to their outputs, each by its first output."""


def rewritten(jaxpr: Jaxpr, replacements: Replacements) -> Jaxpr:
    """The program with some equations replaced."""
    if not replacements:
        return jaxpr

    def rule(eqn: Eqn, inputs: list[Any]) -> list[Any] | None:
        run = replacements.get(eqn.outvars[0]) if eqn.outvars else None
        if run is None:
            return None
        with compat.at_position_of(eqn):
            return run(inputs)

    run = lambda *inputs: jaxprs.evaluate(jaxpr, inputs, rule)
    return jaxprs.inline_calls(jax.make_jaxpr(run)(*map(jaxprs.argument_like, jaxpr.invars)))


def with_bodies(jaxpr: Jaxpr, bodies: Bodies) -> Replacements:
    """Loops and conditionals with some of their bodies replaced."""
    of_equation: dict[int, dict[int, Jaxpr]] = collections.defaultdict(dict)
    for (position, k), body in bodies.items():
        of_equation[position][k] = body
    return {jaxpr.eqns[i].outvars[0]: _with_bodies(jaxpr.eqns[i], new) for i, new in of_equation.items()}


def inlined_throughout(jaxpr: Jaxpr) -> Jaxpr:
    """The program with calls inlined, inside its loops and branches, too, and linear solves as what solves them: all
    has been differentiated already."""
    flat = jaxprs.inline_calls(jaxpr)
    inside = {(i, k): body for i, eqn in enumerate(flat.eqns) for k, body in enumerate(_inlined_bodies(eqn))}
    solves = {eqn.outvars[0]: _solved(eqn) for eqn in flat.eqns if eqn.primitive.name == "custom_linear_solve"}
    return rewritten(flat, {**with_bodies(flat, inside), **solves})


def bodies_of(eqn: Eqn) -> list[Jaxpr]:
    """The bodies of a loop, a conditional or a shard_map, which can be planned as programs of their own."""
    return jaxprs.subjaxprs(eqn) if eqn.primitive.name in LOOPS and eqn.outvars else []


def _inlined_bodies(eqn: Eqn) -> list[Jaxpr]:
    with compat.in_body_of(eqn):
        return list(map(inlined_throughout, bodies_of(eqn)))


def _solved(eqn: Eqn) -> Callable[[list[Any]], list[Any]]:
    """How `jax.lax.custom_linear_solve` runs: its `solve` alone, on the constants that are its own."""
    lengths, solve = eqn.params["const_lengths"], inlined_throughout(eqn.params["jaxprs"].solve)
    first = lengths.matvec + lengths.vecmat
    own, right_sides = slice(first, first + lengths.solve), slice(sum(lengths), None)
    return lambda inputs: jaxprs.evaluate(solve, [*inputs[own], *inputs[right_sides]])


def _with_bodies(eqn: Eqn, new: Mapping[int, Jaxpr]) -> Callable[[list[Any]], list[Any]]:
    replacement = {id(body): new[k] for k, body in enumerate(bodies_of(eqn)) if k in new}
    params = jax.tree.map(lambda x: replacement.get(id(x), x), eqn.params, is_leaf=compat.is_jaxpr)
    return lambda inputs: compat.bind(eqn.replace(params=params), inputs)
