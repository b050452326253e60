"""Plans on disk: a JSON file that another machine applies without solving.

The file holds the decision, the numbers, what becomes of each value by name, and the program's listing in compressed
form, so that a program that has changed is refused with the first difference.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxremat.base.errors import PlanMismatchError
from jaxremat.compiled.compile import MemoryReport
from jaxremat.planner.decision import Decision
from jaxremat.report.values import Value
from jaxremat.trace.joint import Primal, describe

_FORMAT = "jaxremat plan"
_REMEDY = "plan again and save the result"
NUMBERS = (
    "budget_bytes", "peak_bytes", "baseline_peak_bytes", "overhead", "compilations", "solve_seconds", "solver",
    "target", "warnings",
)  # fmt: skip
"""Fields of a Plan that are written as they are."""
_ACTION = ("action", "value", "shape", "bytes", "source")


@dataclasses.dataclass(frozen=True, eq=False)
class StoredPlan:
    """What a plan file holds.

    Attributes:
      decision: what was decided.
      schedule: [T] node ids, also where the form of emission needs none.
      numbers: the fields `NUMBERS` of the plan.
      compiled: the report of its last compilation.
      listing: one line per input and equation of the program.
      actions: what becomes of each value: dicts of value, shape, bytes and action.
    """

    decision: Decision
    schedule: np.ndarray
    numbers: dict[str, Any]
    compiled: MemoryReport | None
    listing: list[str]
    actions: list[dict[str, Any]]


def write_plan(path: str | Path, plan: Any, values: Sequence[Value]) -> None:
    """Writes a plan; `values` are what it decided about, for people who read the file."""
    Path(path).write_text(plan_text(plan, values))


def read_plan(path: str | Path) -> StoredPlan:
    """Reads what `write_plan` wrote.

    Raises:
      PlanMismatchError: if the file is damaged or of another format; the message says where.
    """
    return parse_plan(Path(path).read_text(), str(path))


def plan_text(plan: Any, values: Sequence[Value] = ()) -> str:
    """A plan as JSON."""
    data = {
        "format": _FORMAT,
        "decision": plan.decision.to_json(),
        "schedule": None if plan.decision.schedule else plan.schedule.tolist(),
        "numbers": {name: getattr(plan, name) for name in NUMBERS},
        "compiled": None if plan.compiled is None else dataclasses.asdict(plan.compiled),
        "actions": [_action(value) for value in values],
        "program": _packed(describe(plan.problem.primal.jaxpr)),
    }
    return json.dumps(data, indent=1)


def parse_plan(text: str, source: str) -> StoredPlan:
    """Reads what `plan_text` made; `source` says in messages where the text is from."""
    try:
        data = json.loads(text)
    except ValueError as error:
        raise PlanMismatchError(f"{source} is no plan, or is damaged: {error}; {_REMEDY}") from error
    if not isinstance(data, dict) or data.get("format") != _FORMAT:
        raise PlanMismatchError(f"{source} holds no plan of this library; {_REMEDY}")
    try:
        decision = Decision.from_json({"target": data["numbers"]["target"], **data["decision"]})
        report = data["compiled"]
        return StoredPlan(
            decision=decision,
            schedule=np.asarray(decision.schedule if data["schedule"] is None else data["schedule"], np.int32),
            numbers={name: data["numbers"][name] for name in NUMBERS}
            | {"warnings": tuple(data["numbers"]["warnings"])},
            compiled=None if report is None else MemoryReport(**report),
            listing=_unpacked(data["program"]),
            actions=[{key: action[key] for key in _ACTION} for action in data["actions"]],
        )
    except (KeyError, TypeError, ValueError, AttributeError, zlib.error) as error:
        raise PlanMismatchError(f"{source} is damaged at {error}; {_REMEDY}") from error


def check_listing(planned: Sequence[str], primal: Primal) -> None:
    """Raises PlanMismatchError with the first difference where a program is not the one that was planned."""
    given = describe(primal.jaxpr)
    first = next((i for i, (a, b) in enumerate(zip(planned, given)) if a != b), min(len(planned), len(given)))
    if first == len(planned) == len(given):
        raise PlanMismatchError("the same program, but other arguments are differentiated. Plan again.")
    raise PlanMismatchError(
        f"the function traces to another program than the one that was planned: they part at line {first + 1} of"
        f" {len(planned)} (planned) and {len(given)} (given). Planned: {_line(planned, first)}. Given:"
        f" {_line(given, first)}. Plan again."
    )


def _action(value: Value) -> dict[str, Any]:
    size = value.copies * value.size_bytes
    return dict(zip(_ACTION, (value.action, value.title, value.shape, size, value.source), strict=True))


def _line(lines: Sequence[str], index: int) -> str:
    return lines[index][:160] if index < len(lines) else "the end"


def _packed(lines: Sequence[str]) -> str:
    return base64.b64encode(zlib.compress("\n".join(lines).encode(), 9)).decode()


def _unpacked(text: str) -> list[str]:
    return zlib.decompress(base64.b64decode(text)).decode().split("\n")
