"""What was decided for a loop, as data: it names no Python object, and converts to JSON and back."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Piece:
    """Some consecutive iterations.

    Attributes:
      count: iterations, or segments where `inside` is not empty.
      forward, backward: the schedule of one iteration, as node ids of the body's joint program, in two parts; empty
        for a nested piece.
      inside: the pieces that make up one segment.
    """

    count: int
    forward: tuple[int, ...] = ()
    backward: tuple[int, ...] = ()
    inside: tuple[Piece, ...] = ()

    @property
    def length(self) -> int:
        """Iterations, all told."""
        return self.count * (length_of(self.inside) or 1)

    @property
    def leaf(self) -> Piece:
        """A piece of the innermost level: the first one, where there are several."""
        return self.inside[0].leaf if self.inside else self

    @property
    def repeats(self) -> bool:
        """Whether the backward runs anything twice: only barriers keep a compiler from running it once."""
        return len(set(self.backward)) < len(self.backward)

    def to_json(self) -> list[Any]:
        return [self.count, list(self.forward), list(self.backward), [piece.to_json() for piece in self.inside]]

    @staticmethod
    def from_json(data: list[Any]) -> Piece:
        count, forward, backward, inside = data
        return Piece(int(count), tuple(forward), tuple(backward), tuple(map(Piece.from_json, inside)))


@dataclasses.dataclass(frozen=True)
class LoopDecision:
    """How a loop is differentiated.

    Attributes:
      pieces: cover the iterations, in the order in which they run.
      inner: one decision per loop inside the body.
      has_barriers: whether recomputation inside an iteration waits behind optimization barriers. XLA:CPU then computes
        it just in time (a scanned transformer: 4391 MiB instead of 4486); XLA:GPU orders it well by itself, and a
        barrier only keeps it from fusing (1269 MiB instead of 1085).
      gradient: the fingerprint of one iteration's forward and backward; empty in files of before it.
    """

    pieces: tuple[Piece, ...]
    inner: tuple[LoopDecision, ...] = ()
    has_barriers: bool = False
    gradient: str = ""

    @property
    def length(self) -> int:
        return length_of(self.pieces)

    def to_json(self) -> dict[Any, Any]:
        return {
            "pieces": [piece.to_json() for piece in self.pieces],
            "inner": [inner.to_json() for inner in self.inner],
            "fenced": self.has_barriers,
            "gradient": self.gradient,
        }

    @staticmethod
    def from_json(data: dict[Any, Any]) -> LoopDecision:
        pieces = tuple(map(Piece.from_json, data["pieces"]))
        inner = tuple(map(LoopDecision.from_json, data["inner"]))
        return LoopDecision(pieces, inner, bool(data["fenced"]), str(data.get("gradient", "")))


def length_of(pieces: tuple[Piece, ...]) -> int:
    """Iterations of some pieces."""
    return sum(piece.length for piece in pieces)
