"""Plans of steps on disk: JSON that another machine applies without solving."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from jaxremat.base.errors import PlanMismatchError
from jaxremat.chunk.choice import Chunked
from jaxremat.compiled.compile import MemoryReport
from jaxremat.step.decision import ProgramDecision
from jaxremat.step.program import StepProgram

_FORMAT = "jaxremat step plan 1"
_NUMBERS = ("budget_bytes", "baseline_peak_bytes", "compilations", "solve_seconds", "solver", "target")


@dataclasses.dataclass(frozen=True, eq=False)
class StoredStepPlan:
    """What a file holds.

    Attributes:
      decision: what was decided.
      chunks: parts that run slice by slice.
      fingerprint: of the step that was planned.
      names: the paths of its inputs, with their types.
      compiled: the report of its last compilation.
      numbers: the fields `budget_bytes`, `baseline_peak_bytes`, `compilations`, `solve_seconds`, `solver`, `target`.
    """

    decision: ProgramDecision
    chunks: tuple[Chunked, ...]
    fingerprint: str
    names: tuple[str, ...]
    compiled: MemoryReport | None
    numbers: dict[str, Any]


def stored_step_plan(plan: Any) -> StoredStepPlan:
    """What is kept of a `StepPlan`."""
    return StoredStepPlan(
        decision=plan.decision,
        chunks=plan.program.chunks,
        fingerprint=plan.program.fingerprint,
        names=_inputs(plan.program),
        compiled=plan.compiled,
        numbers={name: getattr(plan, name) for name in _NUMBERS},
    )


def step_plan_text(plan: Any) -> str:
    """A `StepPlan` as JSON."""
    stored = stored_step_plan(plan)
    data = {
        "format": _FORMAT,
        "decision": stored.decision.to_json(),
        "chunks": [chunk.to_json() for chunk in stored.chunks],
        "fingerprint": stored.fingerprint,
        "inputs": list(stored.names),
        "compiled": None if stored.compiled is None else dataclasses.asdict(stored.compiled),
        "numbers": stored.numbers,
        "arguments": [dataclasses.asdict(group) for group in plan.arguments],
    }
    return json.dumps(data, indent=1)


def parse_step_plan(text: str, path: str | Path) -> StoredStepPlan:
    """Reads what `step_plan_text` made.

    Raises:
      PlanMismatchError: if it is damaged or something else; `path` says where it was.
    """
    try:
        data = json.loads(text)
        if data["format"] != _FORMAT:
            raise PlanMismatchError(
                f"{path} holds no plan of a step: {data['format']!r}; plan again and save the result"
            )
        report = data["compiled"]
        return StoredStepPlan(
            decision=ProgramDecision.from_json(data["decision"]),
            chunks=tuple(map(Chunked.from_json, data.get("chunks", ()))),
            fingerprint=str(data["fingerprint"]),
            names=tuple(data["inputs"]),
            compiled=None if report is None else MemoryReport(**report),
            numbers={name: data["numbers"][name] for name in _NUMBERS},
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise PlanMismatchError(f"{path} is no plan of a step, or is damaged at {error}; plan again") from error


def check_program(stored: StoredStepPlan, program: StepProgram) -> None:
    """Raises PlanMismatchError where a step is not the one that was planned, with the first difference."""
    if stored.fingerprint == program.fingerprint:
        return
    pairs = zip(stored.names, _inputs(program))
    different = [f"planned {a}, given {b}" for a, b in pairs if a != b]
    if len(stored.names) != len(program.names):
        different.append(f"planned {len(stored.names)} arrays, given {len(program.names)}")
    detail = "; ".join(different[:4]) or "its arguments are the same, what it computes or donates is not"
    raise PlanMismatchError(f"this step is not the one that was planned: {detail}. Plan again.")


def _inputs(program: StepProgram) -> tuple[str, ...]:
    return tuple(f"{name} {v.aval.str_short()}" for name, v in zip(program.names, program.jaxpr.invars, strict=True))
