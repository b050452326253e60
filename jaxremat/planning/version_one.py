"""Plan files of version 1, which stored neither what is saved nor a typed form."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxremat.attention.pattern import KIND as ATTENTION
from jaxremat.backends.devices import resolve_target
from jaxremat.chunk.choice import Chunked
from jaxremat.emit.segments import Pieces
from jaxremat.graph.scheduled import schedule_program
from jaxremat.loops.decision import LoopDecision
from jaxremat.loops.emit import rewritten
from jaxremat.planner.decision import AsWritten, Checkpoints, Decision, Form, OwnNames, Schedule
from jaxremat.trace.joint import differentiate
from jaxremat.trace.primal import Primal


@dataclasses.dataclass(frozen=True)
class DecisionOne:
    """A decision of version 1.

    Attributes:
      fingerprint, signature, argnums, has_aux: as in `Decision`.
      target: name of the device that it is for.
      emit: "plain", "schedule", "names" or "segments".
      chunks: as in `Decision`.
      data: the fields of its form.
    """

    fingerprint: str
    signature: tuple[str, ...]
    argnums: int | tuple[int, ...]
    has_aux: bool
    target: str
    emit: str
    chunks: tuple[Chunked, ...]
    data: dict[str, Any]

    @staticmethod
    def from_json(data: dict[str, Any]) -> DecisionOne:
        argnums = data["argnums"]
        return DecisionOne(
            fingerprint=str(data["fingerprint"]),
            signature=tuple(data["signature"]),
            argnums=tuple(argnums) if isinstance(argnums, list) else int(argnums),
            has_aux=bool(data["has_aux"]),
            target=str(data["target"]),
            emit=str(data["emit"]),
            chunks=_chunks(data),
            data={key: data[key] for key in ("loops", "schedule", "fences", "start", "fenced", "names", "extra")},
        )

    def completed(self, primal: Primal) -> Decision:
        """The same decision today, with what only its program tells."""
        return Decision(
            self.fingerprint,
            self.signature,
            self.argnums,
            self.has_aux,
            self.target,
            self._form(primal),
            self.chunks,
        )

    def _form(self, primal: Primal) -> Form:
        extra = self.data["extra"]
        if self.emit == "plain":
            return AsWritten()
        if self.emit == "schedule":
            return self._schedule(primal)
        if extra.get("own"):
            return OwnNames(tuple(self.data["names"]))
        labels = tuple((int(equation), int(result), str(name)) for equation, result, name in extra["labels"])
        return Checkpoints(self.emit, Pieces.from_json(extra["pieces"]), labels, bool(extra["outer"]))

    def _schedule(self, primal: Primal) -> Schedule:
        loops = tuple(map(LoopDecision.from_json, self.data["loops"]))
        backend = resolve_target(self.target).backend
        program = schedule_program(
            differentiate(primal, rewritten(primal, loops, backend) if loops else None),
            self.data["schedule"],
            backward_start=self.data["start"],
            barriers=self.data["fences"],
            barrier_scope=self.data["fenced"],
        )
        return Schedule(program, loops)


def _chunks(data: dict[str, Any]) -> tuple[Chunked, ...]:
    """All attention in tiles of the target's size, where that was decided."""
    entries = resolve_target(data["target"]).backend.scores_per_tile
    return (Chunked(ATTENTION, None, entries),) if data["extra"].get("chunk_attention") else ()


def renamed(data: dict[str, Any]) -> dict[str, Any]:
    """A file of version 1 under the keys of today."""
    kept = {key: data[key] for key in ("format", "schedule", "numbers", "compiled", "actions")}
    decision = {"target": data["numbers"]["target"], **data["decision"]}
    return {**kept, "decision": decision, "version": 1, "solver_parameters": {}, "listing": data["program"]}
