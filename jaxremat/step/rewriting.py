"""A flat program with its loops as decided: pairs of scans emitted together, bodies replaced by planned ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import jax

from jaxremat.base import compat
from jaxremat.base.compat import Eqn, Jaxpr, Var
from jaxremat.base.errors import PlanMismatchError
from jaxremat.loops.decision import LoopDecision
from jaxremat.step.pairs import Pair, emit_pairs
from jaxremat.trace import jaxpr as jaxprs

Bodies = Mapping[tuple[int, int], Jaxpr]
"""By (equation, which of its bodies)."""


def rewritten(jaxpr: Jaxpr, pairs: Sequence[Pair], decisions: Sequence[LoopDecision], bodies: Bodies) -> Jaxpr:
    """The program with its pairs emitted as decided, where anything is, and with some bodies replaced.

    Raises:
      PlanMismatchError: if the decisions are for another number of pairs.
    """
    if not decisions and not bodies:
        return jaxpr
    if decisions and len(decisions) != len(pairs):
        raise PlanMismatchError(f"{len(decisions)} decisions meet {len(pairs)} pairs of scans: plan again")
    emitted = emit_pairs(jaxpr, pairs, decisions) if decisions else {}
    emitted.update(_replaced(jaxpr, bodies))

    def rule(eqn: Eqn, inputs: list) -> list | None:
        run = emitted.get(eqn.outvars[0]) if eqn.outvars else None
        if run is None:
            return None
        with compat.at_position_of(eqn):
            return run(inputs)

    run = lambda *inputs: jaxprs.evaluate(jaxpr, inputs, rule)
    return jaxprs.inline_calls(jax.make_jaxpr(run)(*map(jaxprs.shape_of, jaxpr.invars)))


def inlined_throughout(jaxpr: Jaxpr) -> Jaxpr:
    """The program with calls inlined inside its loops and branches, too."""
    flat = jaxprs.inline_calls(jaxpr)
    inside = {(i, k): inlined_throughout(b) for i, eqn in enumerate(flat.eqns) for k, b in enumerate(bodies_of(eqn))}
    return rewritten(flat, (), (), inside)


def bodies_of(eqn: Eqn) -> list[Jaxpr]:
    """The bodies of a loop or conditional that can be planned as programs of their own."""
    if eqn.primitive.name not in ("scan", "while", "cond"):
        return []
    return jaxprs.subjaxprs(eqn)


def _replaced(jaxpr: Jaxpr, bodies: Bodies) -> dict[Var, Callable[[list], list]]:
    return {
        jaxpr.eqns[position].outvars[0]: _with_bodies(
            jaxpr.eqns[position], {k: body for (other, k), body in bodies.items() if other == position}
        )
        for position, _ in bodies
    }


def _with_bodies(eqn: Eqn, new: Mapping[int, Jaxpr]) -> Callable[[list], list]:
    replacement = {id(body): new[k] for k, body in enumerate(bodies_of(eqn)) if k in new}
    params = jax.tree.map(lambda x: replacement.get(id(x), x), eqn.params, is_leaf=compat.is_jaxpr)
    return lambda inputs: compat.bind(eqn.replace(params=params), inputs)
