"""What was decided for a step, as data: it names no Python object, and converts to JSON and back."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxremat.loops.decision import LoopDecision


@dataclasses.dataclass(frozen=True)
class ProgramDecision:
    """How a flat program runs: the step, or a body inside it.

    Attributes:
      steps: node ids in execution order, of the program with its loops as decided; empty where it stays in order.
      barriers: steps at which a stretch behind a barrier opens.
      pairs: one decision per pair of scans, or none where they are left alone.
      bodies: (equation, which of its bodies, decision) for each body that is planned as a program of its own.
      storages: forms in which values may wait inside the pairs.
      barrier_scope: what enters through a barrier; see `ScheduledProgram`.
      joined: whether the conditionals and shard_maps that a gradient passes through are; see `joining`.
    """

    steps: tuple[int, ...] = ()
    barriers: tuple[int, ...] = ()
    pairs: tuple[LoopDecision, ...] = ()
    bodies: tuple[tuple[int, int, ProgramDecision], ...] = ()
    storages: tuple[str, ...] = ()
    barrier_scope: str = "all"
    joined: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether the program is left as it is written."""
        return self == ProgramDecision()

    @property
    def forms(self) -> tuple[str, ...]:
        """The forms in which values may wait, those inside of bodies included."""
        return tuple(dict.fromkeys([*self.storages, *(form for *_, inner in self.bodies for form in inner.forms)]))

    def to_json(self) -> dict[str, Any]:
        return {
            "steps": list(self.steps),
            "barriers": list(self.barriers),
            "pairs": [pair.to_json() for pair in self.pairs],
            "bodies": [[equation, body, inner.to_json()] for equation, body, inner in self.bodies],
            "storages": list(self.storages),
            "barrier_scope": self.barrier_scope,
            "joined": self.joined,
        }

    @staticmethod
    def from_json(data: dict[str, Any]) -> ProgramDecision:
        return ProgramDecision(
            steps=tuple(data["steps"]),
            barriers=tuple(data["barriers"]),
            pairs=tuple(map(LoopDecision.from_json, data["pairs"])),
            bodies=tuple((int(e), int(b), ProgramDecision.from_json(inner)) for e, b, inner in data["bodies"]),
            storages=tuple(data.get("storages", ())),
            barrier_scope=data.get("barrier_scope", "all"),
            joined=bool(data.get("joined", False)),
        )
