"""What a plan decided, in a form that survives the process: names no Python object, converts to JSON and back."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxremat.base.errors import PlanMismatchError

FORMAT_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Decision:
    """Everything that is needed to emit a plan again.

    Attributes:
      fingerprint: of the flat primal program that was planned.
      signature: shape and dtype of every argument leaf, as text.
      argnums: which arguments are differentiated.
      has_aux: whether the function returns (result, auxiliary data).
      emit: "plain", "schedule", "names" or "segments".
      target: name of the device that it is for.
      loops: one JSON-able entry per loop of the program, None where the loop is left alone.
      schedule: node ids of the joint program in execution order, empty unless emit is "schedule".
      fences: steps of the schedule at which a barrier opens, or None for the default.
      start: the step of the schedule at which the backward begins, or None for the default.
      fenced: what enters through a barrier; see `emit.scheduled.write_script`.
      names: names of the values to save, for emit "names".
      extra: what a form needs beyond this, JSON-able.
    """

    fingerprint: str
    signature: tuple[str, ...]
    argnums: tuple[int, ...] | int
    has_aux: bool
    emit: str
    target: str
    loops: tuple[Any, ...] = ()
    schedule: tuple[int, ...] = ()
    fences: tuple[int, ...] | None = None
    start: int | None = None
    fenced: str = "all"
    names: tuple[str, ...] = ()
    extra: dict = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict:
        return {"version": FORMAT_VERSION, **dataclasses.asdict(self)}

    @staticmethod
    def from_json(data: dict) -> Decision:
        """Raises PlanMismatchError for another format, or for fields that are missing or unknown."""
        known = {field.name for field in dataclasses.fields(Decision)}
        if not isinstance(data, dict) or data.get("version") != FORMAT_VERSION:
            raise PlanMismatchError(f"not a plan of format {FORMAT_VERSION}; plan again and save the result")
        given = {key: value for key, value in data.items() if key != "version"}
        if set(given) != known:
            raise PlanMismatchError(f"the plan's fields differ from the expected ones in {sorted(set(given) ^ known)}")
        for key in ("signature", "loops", "schedule", "names"):
            given[key] = tuple(given[key])
        for key in ("argnums", "fences"):
            given[key] = tuple(given[key]) if isinstance(given[key], list) else given[key]
        return Decision(**given)
