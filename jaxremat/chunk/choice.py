"""Which parts of a program run in chunks: plain data that a plan keeps."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Chunked:
    """Like parts of a program that run in chunks.

    Attributes:
      kind: such as "softmax attention".
      shape: of their large value; None for every part of the kind.
      entries: about so many entries of the large value at a time.
    """

    kind: str
    shape: tuple[int, ...] | None
    entries: int

    def __str__(self) -> str:
        of = "" if self.shape is None else f" with {list(self.shape)}"
        return f"every {self.kind}{of}, about {self.entries} entries at a time"

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> Chunked:
        shape = data["shape"]
        return Chunked(str(data["kind"]), None if shape is None else tuple(map(int, shape)), int(data["entries"]))
