"""Plans on disk: a JSON file that another machine applies without solving.

Schema, version 2. `format`: "jaxremat plan"; `version`: 2; `decision`: what is emitted (`Decision.to_json`);
`schedule`: node ids in execution order, where the form of emission holds none; `numbers`: the fields
`NUMBERS` of the plan; `solver_parameters`; `compiled`: the report of the last compilation, or null; `actions`: what
becomes of each value, for people; `listing`: the program, a line per input and equation, compressed, so that a program
that has changed is refused with the first difference. Files of version 1 are read (`version_one`).
"""

from __future__ import annotations

import base64
import dataclasses
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxremat.base.errors import PlanMismatchError
from jaxremat.compiled.compile import MemoryReport
from jaxremat.planner.decision import Decision
from jaxremat.planning import version_one
from jaxremat.planning.version_one import DecisionOne
from jaxremat.report.report import Numbers
from jaxremat.report.values import Value
from jaxremat.trace.fingerprint import describe

FORMAT, VERSION = "jaxremat plan", 2
_REMEDY = "plan again and save the result"
NUMBERS = tuple(field.name for field in dataclasses.fields(Numbers) if field.name not in ("compiled", "form"))
"""Fields of a Plan that are written as they are."""
_ACTION = ("action", "value", "shape", "bytes", "source")


@dataclasses.dataclass(frozen=True, eq=False)
class StoredPlan:
    """What a plan file holds.

    Attributes:
      decision: what was decided; of version 1, still to be completed with its program.
      schedule: [T] node ids, where the form of emission holds none.
      numbers: the fields `NUMBERS` of the plan.
      solver_parameters: of the solver.
      compiled: the report of its last compilation.
      listing: one line per input and equation of the program.
      actions: what becomes of each value: dicts of value, shape, bytes and action.
    """

    decision: Decision | DecisionOne
    schedule: tuple[int, ...] | None
    numbers: dict[str, Any]
    solver_parameters: dict[str, Any]
    compiled: MemoryReport | None
    listing: list[str]
    actions: list[dict[str, Any]]


def stored_plan(plan: Any) -> StoredPlan:
    """What is decided in a plan, for the same process: neither listing nor actions, and nothing of the program."""
    return StoredPlan(
        decision=plan.decision,
        schedule=_schedule(plan),
        numbers={name: getattr(plan, name) for name in NUMBERS},
        solver_parameters=plan.solver_parameters,
        compiled=plan.compiled,
        listing=[],
        actions=[],
    )


def read_plan(path: str | Path) -> StoredPlan:
    """Reads a file that holds what `plan_text` made.

    Raises:
      PlanMismatchError: if the file is damaged or of another format; the message says where.
    """
    return parse_plan(Path(path).read_text(), str(path))


def plan_text(plan: Any, values: Sequence[Value] = ()) -> str:
    """A plan as JSON; `values` are what it decided about, for people who read the file."""
    data = {
        "format": FORMAT,
        "version": VERSION,
        "decision": plan.decision.to_json(),
        "schedule": _schedule(plan),
        "numbers": {name: getattr(plan, name) for name in NUMBERS},
        "solver_parameters": plan.solver_parameters,
        "compiled": None if plan.compiled is None else dataclasses.asdict(plan.compiled),
        "actions": [_action(value) for value in values],
        "listing": _packed(describe(plan.problem.primal.given.jaxpr)),
    }
    return json.dumps(data, indent=1)


def parse_plan(text: str, source: str) -> StoredPlan:
    """Reads what `plan_text` made; `source` says in messages where the text is from.

    Raises:
      PlanMismatchError: for text that is no plan, or damaged.
    """
    try:
        data = json.loads(text)
    except ValueError as error:
        raise PlanMismatchError(f"{source} is no plan, or is damaged: {error}; {_REMEDY}") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise PlanMismatchError(f"{source} holds no plan of this library; {_REMEDY}")
    try:
        return _stored(version_one.renamed(data) if "version" not in data else data)
    except (KeyError, TypeError, ValueError, AttributeError, zlib.error) as error:
        raise PlanMismatchError(f"{source} is damaged at {error}; {_REMEDY}") from error


def _stored(data: dict[str, Any]) -> StoredPlan:
    if data["version"] not in (1, VERSION):
        raise ValueError(f"version {data['version']}, which a later jaxremat wrote; this one reads up to {VERSION}")
    kind = DecisionOne if data["version"] == 1 else Decision
    return StoredPlan(
        decision=kind.from_json(data["decision"]),
        schedule=None if data["schedule"] is None else tuple(map(int, data["schedule"])),
        numbers={name: data["numbers"][name] for name in NUMBERS} | {"warnings": tuple(data["numbers"]["warnings"])},
        solver_parameters=dict(data["solver_parameters"]),
        compiled=None if data["compiled"] is None else MemoryReport(**data["compiled"]),
        listing=_unpacked(data["listing"]),
        actions=[{key: action[key] for key in _ACTION} for action in data["actions"]],
    )


def _schedule(plan: Any) -> tuple[int, ...] | None:
    return None if plan.decision.emit == "schedule" else tuple(plan.schedule.tolist())


def _action(value: Value) -> dict[str, Any]:
    size = value.copies * value.size_bytes
    return dict(zip(_ACTION, (value.action, value.title, value.shape, size, value.source), strict=True))


def _packed(lines: Sequence[str]) -> str:
    return base64.b64encode(zlib.compress("\n".join(lines).encode(), 9)).decode()


def _unpacked(text: str) -> list[str]:
    return zlib.decompress(base64.b64decode(text)).decode().split("\n")
