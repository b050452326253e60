"""The forward values that a plan decides about, one record each."""

from __future__ import annotations

import dataclasses

from jaxremat.base.compat import Eqn, Var
from jaxremat.report.naming import LOSSES
from jaxremat.report.origin import Origin, origins_of
from jaxremat.report.parts import Part
from jaxremat.trace import jaxpr as jaxprs
from jaxremat.trace.joint import Joint
from jaxremat.trace.primitives import ALIASING

_SAME_NUMBERS = ALIASING | {"convert_element_type", "transpose", "slice"}
"""Primitives whose result is known by the name of what they read."""


@dataclasses.dataclass(frozen=True)
class Value:
    """One forward value that the backward reads, or that waits so that others can be computed again.

    Attributes:
      path: module path, such as `GPT/block_3/query`.
      label: what people call it, such as `gelu`, `softmax weights` or `dropout mask`.
      operation: what makes it, such as `Dense dot_general`.
      name: the name that the program's author gave with `checkpoint_name`, or empty.
      source: the author's line, such as `model.py:21`, or empty.
      shape: dtype and shape, such as `float32[8,512]`.
      size_bytes: bytes of one copy, on the planned device.
      copies: how many there are: the iterations of its loop, otherwise 1.
      action: "save" where it is kept from the forward to the backward; "recompute" where it runs again; "defer" where
        it runs once, in the backward.
      iterations: which iterations of a loop this is about, such as `0–2 of 12`; empty outside of loops.
      form: how it waits: "device", or the name of another storage, such as "bits".
    """

    path: str
    label: str
    operation: str
    name: str
    source: str
    shape: str
    size_bytes: int
    copies: int
    action: str
    iterations: str = ""
    form: str = "device"

    @property
    def saved(self) -> bool:
        return self.action == "save"

    @property
    def total_bytes(self) -> int:
        return self.copies * self.size_bytes

    @property
    def what(self) -> str:
        """The author's own name, in quotes, or what people call it."""
        return f'"{self.name}" {self.label}' if self.name else self.label

    @property
    def title(self) -> str:
        """Path and name."""
        return f"{self.path}  {self.what}" if self.path else self.what


def values_of(part: Part) -> dict[int, Value]:
    """A record for each value that there is something to say about, by its id."""
    names = Names(part.joint)
    variables = [var for eqn in part.joint.eqns for var in eqn.outvars]
    return {value: _record(part, names, value, variables[value]) for value in part.wanted.tolist()}


class Names:
    """What is known by name in a program.

    Args:
      joint: the program.
    """

    def __init__(self, joint: Joint):
        self.maker = {var: i for i, eqn in enumerate(joint.eqns) for var in eqn.outvars}
        self.origins = _with_logits(joint, origins_of(joint), self.maker)
        self._given: dict[Var, str] = {}
        for eqn in filter(_is_name, joint.eqns):
            self._given.update((var, str(eqn.params["name"])) for var in jaxprs.vars_of([*eqn.invars, *eqn.outvars]))
        self._eqns = joint.eqns
        self._source = {trip.stored: trip.source for trip in joint.round_trips}
        self._source |= {trip.restored: trip.source for trip in joint.round_trips}
        self._form = {trip.stored: trip.form for trip in joint.round_trips}

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


def _record(part: Part, names: Names, value: int, var: Var) -> Value:
    origin = names.origin(var)
    return Value(
        path="/".join(piece for piece in (part.path, origin.path) if piece),
        label=origin.label,
        operation=origin.operation,
        name=names.given(var),
        source=origin.source,
        shape=_shape(var),
        size_bytes=int(part.graph.value_bytes[value]),
        copies=part.repeats,
        action=_action(part, value),
        iterations=part.iterations,
        form=names.form(var),
    )


def _action(part: Part, value: int) -> str:
    if part.is_saved[value]:
        return "save"
    return "recompute" if part.runs[part.graph.producer[value]] > 1 else "defer"


def _shape(var: Var) -> str:
    shape = getattr(var.aval, "shape", None)
    if shape is None:
        return str(var.aval)
    return f"{getattr(var.aval, 'dtype', '')}[{','.join(map(str, shape))}]"
