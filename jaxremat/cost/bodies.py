"""Bodies of loops and branches whose costs are known: equal ones are worked out once, however often they are traced."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from jaxremat.base import compat
from jaxremat.base.compat import Jaxpr, Var
from jaxremat.cost.fused import Fusion
from jaxremat.cost.fused_before import FusedBefore
from jaxremat.cost.hlo_builder import Beginning
from jaxremat.cost.hlo_ops import Computation, Templates


class KnownBodies:
    """What is known of bodies on one device.

    Attributes:
      templates: what is known of equations, inside and outside of bodies.
      fused_before: how kernels are fused, inside and outside of bodies.
      fusions: programs as they stand, fused.
      begun: how programs begin, lowered: of every number of lines, the latest.
    """

    def __init__(self) -> None:
        self.templates = Templates()
        self.fused_before = FusedBefore()
        self.fusions: dict[Jaxpr, Fusion] = {}
        self.begun: dict[int, Beginning] = {}
        self._known: dict[Hashable, Any] = {}

    def once[T](self, fact: str, body: Computation, work_out: Callable[[Computation], T]) -> T:
        """A fact about a body, worked out where no equal body was met before."""
        key = fact, body.own_inputs, body.own_outputs, structure(body.jaxpr)
        if key not in self._known:
            self._known[key] = work_out(body)
        return self._known[key]


def structure(jaxpr: Jaxpr) -> Hashable:
    """What a program computes, on which types; the same for programs that were traced at different times.

    Functions among parameters and values of constants count for nothing: no cost depends on them.
    """
    inputs = (*jaxpr.constvars, *jaxpr.invars)
    number: dict[Var, int] = {var: i for i, var in enumerate(inputs)}

    def refer(atom: Any) -> Hashable:
        return number[atom] if isinstance(atom, Var) else (str(atom.val), atom.aval)

    lines: list[Hashable] = [tuple(var.aval for var in inputs)]
    for eqn in jaxpr.eqns:
        reads = tuple(map(refer, eqn.invars))
        number.update((var, len(number) + k) for k, var in enumerate(eqn.outvars))
        params = tuple((name, _part(value)) for name, value in sorted(eqn.params.items()))
        lines.append((eqn.primitive, reads, tuple(var.aval for var in eqn.outvars), bool(eqn.effects), params))
    return (*lines, tuple(map(refer, jaxpr.outvars)))


def _part(value: Any) -> Hashable:
    if compat.is_jaxpr(value):
        return structure(value)
    if isinstance(value, tuple):
        return tuple(map(_part, value))
    if callable(value):
        return None
    try:
        hash(value)
    except TypeError:
        return str(value)
    return value
