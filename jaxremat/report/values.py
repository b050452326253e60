"""The forward values that a plan decides about, one record each."""

from __future__ import annotations

import dataclasses

from jaxremat.base.compat import Var
from jaxremat.report.names import Names
from jaxremat.report.parts import Part
from jaxremat.trace.jaxpr import array_bytes, is_on_host


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
      form: how it waits: "device", or the name of another storage, such as "bits" or "host".
      host_bytes: bytes of one copy in the host's memory.
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
    host_bytes: int = 0

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
    names = part.names
    variables = [var for eqn in part.joint.eqns for var in eqn.outvars]
    return {value: _record(part, names, value, variables[value]) for value in part.wanted.tolist()}


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
        host_bytes=array_bytes(var) if is_on_host(var) else 0,
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
