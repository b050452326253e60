"""What is known by name in a program: where each value comes from, and what its author called it."""

from __future__ import annotations

import dataclasses

from jaxremat.base.compat import Eqn, Var
from jaxremat.report.naming import LOSSES
from jaxremat.report.origin import Origin, origins_of
from jaxremat.trace import jaxpr as jaxprs
from jaxremat.trace.joint import Joint
from jaxremat.trace.origins import is_mark
from jaxremat.trace.primitives import ALIASING

_SAME_NUMBERS = ALIASING | {"convert_element_type", "transpose", "slice"}
"""Primitives whose result is known by the name of what they read."""


class Names:
    """What is known by name in a program.

    Args:
      joint: the program.
    """

    def __init__(self, joint: Joint) -> None:
        self.maker = {var: i for i, eqn in enumerate(joint.eqns) for var in eqn.outvars}
        self.origins = _with_logits(joint, origins_of(joint), self.maker)
        self._given: dict[Var, str] = {}
        for eqn in filter(_is_name, joint.eqns):
            name = str(eqn.params["name"])
            if not is_mark(name):
                self._given.update((var, name) for var in jaxprs.vars_of([*eqn.invars, *eqn.outvars]))
        self._eqns = joint.eqns
        self._source = {v: trip.source for trip in joint.round_trips for v in (*trip.waiting, trip.restored)}
        self._form = {v: trip.form for trip in joint.round_trips for v in trip.waiting}

    def form(self, var: Var) -> str:
        """How a value is stored."""
        return self._form.get(var, "device")

    def given(self, var: Var) -> str:
        """The author's name: of what `checkpoint_name` received and of what it returned."""
        return self._given.get(var, "")

    def origin(self, var: Var) -> Origin:
        """Where the numbers of a value come from: behind names, other shapes and other types of the same."""
        if var in self._source:
            return self.origin(self._source[var])
        node = self.maker[var]
        eqn, origin = self._eqns[node], self.origins[node]
        source = next((atom for atom in jaxprs.vars_of(eqn.invars) if atom in self.maker), None)
        is_view = _is_name(eqn) or (eqn.primitive.name in _SAME_NUMBERS and origin.label == eqn.primitive.name)
        return self.origin(source) if is_view and source is not None else origin


def _is_name(eqn: Eqn) -> bool:
    return eqn.primitive.name == "name"


def _with_logits(joint: Joint, origins: tuple[Origin, ...], maker: dict[Var, int]) -> tuple[Origin, ...]:
    """Origins in which what a loss takes the maxima of, for its softmax, is called its logits."""
    logits: set[int] = set()
    waiting = [
        var
        for eqn, origin in zip(joint.eqns, origins)
        if origin.label in LOSSES and eqn.primitive.name == "reduce_max"
        for var in jaxprs.vars_of(eqn.invars)
    ]
    while waiting:
        node = maker.get(waiting.pop())
        if node is None or node in logits or origins[node].label in LOSSES or joint.backward[node]:
            continue
        logits.add(node)
        if joint.eqns[node].primitive.name in _SAME_NUMBERS:
            waiting.extend(jaxprs.vars_of(joint.eqns[node].invars))
    return tuple(
        dataclasses.replace(origin, label="loss logits") if node in logits else origin
        for node, origin in enumerate(origins)
    )
