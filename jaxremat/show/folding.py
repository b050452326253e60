"""Identical layers folded into one row: the same path up to its numbers, the same operation, shape and action."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from jaxremat.show.stretch import Stretch, Value

_LEAST_SHARE = 3e-4


@dataclasses.dataclass(frozen=True)
class Row:
    """Values that are alike, and what becomes of them.

    Attributes:
      path: module path; what differs between the values is written as a range or a star (`GPT/block_0…11/up`).
      what: the author's name and the operation.
      source: the author's line.
      shape: dtype and shape of one value.
      count: how many values there are.
      size_bytes: bytes of one value.
      saved: whether they are kept.
      seconds: what recomputing all of them costs, or would cost.
      fraction: the same, of the time of the program without recomputation.
    """

    path: str
    what: str
    source: str
    shape: str
    count: int
    size_bytes: int
    saved: bool
    seconds: float
    fraction: float

    @property
    def total_bytes(self) -> int:
        return self.count * self.size_bytes

    @property
    def action(self) -> str:
        return "save" if self.saved else "recompute"

    @property
    def seconds_per_gib(self) -> float:
        """The price of the memory: seconds of recomputation per GiB."""
        return self.seconds / (self.total_bytes / 2**30)


def fold(stretches: Sequence[Stretch], plain_seconds: float, most_rows: int) -> tuple[tuple[Row, ...], int, int]:
    """The rows with the most bytes, saved ones first.

    Args:
      stretches: the program, and the iterations of its loops.
      plain_seconds: time of the program without recomputation.
      most_rows: how many rows there may be.

    Returns:
      (rows, number of values left out, their bytes): rows of hardly any bytes are left out too.
    """
    groups = [(stretch, members) for stretch in stretches for members in _alike(stretch)]
    groups.sort(key=lambda group: -_total_bytes(*group))
    least_bytes = _LEAST_SHARE * sum(_total_bytes(*group) for group in groups)
    told = sum(_total_bytes(*group) >= least_bytes for group in groups[:most_rows])
    rows = [_row(stretch, members, plain_seconds) for stretch, members in groups[:told]]
    left_out = groups[told:]
    rows.sort(key=lambda row: (not row.saved, -row.total_bytes))
    values = sum(len(members) * stretch.repeats for stretch, members in left_out)
    return tuple(rows), values, sum(_total_bytes(stretch, members) for stretch, members in left_out)


def _alike(stretch: Stretch) -> list[list[int]]:
    groups: dict[tuple, list[int]] = {}
    for index, value in stretch.values.items():
        key = without_numbers(value.path), value.name, value.operation, value.source, value.shape, value.saved
        groups.setdefault(key, []).append(index)
    return list(groups.values())


def without_numbers(path: str) -> str:
    return re.sub(r"\d+", "#", path)


def _total_bytes(stretch: Stretch, members: Sequence[int]) -> int:
    return stretch.repeats * sum(stretch.values[index].size_bytes for index in members)


def _row(stretch: Stretch, members: Sequence[int], plain_seconds: float) -> Row:
    values = [stretch.values[index] for index in members]
    first: Value = values[0]
    seconds = stretch.seconds_of(members) * stretch.repeats
    return Row(
        path=common_path([value.path for value in values]),
        what=f'"{first.name}" {first.operation}' if first.name else first.operation,
        source=first.source,
        shape=first.shape,
        count=len(values) * stretch.repeats,
        size_bytes=first.size_bytes,
        saved=first.saved,
        seconds=seconds,
        fraction=seconds / plain_seconds if plain_seconds else 0.0,
    )


def common_path(paths: Sequence[str]) -> str:
    """One path for several that differ only in numbers: `block_0…3` for all from 0 to 3, `block_*` for others."""
    pieces = [re.split(r"(\d+)", path) for path in dict.fromkeys(paths)]
    return "".join(_common_piece(column) for column in zip(*pieces, strict=True))


def _common_piece(column: Sequence[str]) -> str:
    distinct = set(column)
    if len(distinct) == 1:
        return column[0]
    numbers = sorted(map(int, distinct))
    return f"{numbers[0]}…{numbers[-1]}" if numbers == list(range(numbers[0], numbers[-1] + 1)) else "*"
