"""Values that are alike as one row: the same path up to its numbers, the same name, action and iterations."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jaxremat.report.parts import Part
from jaxremat.report.values import Value

ACTIONS = ("save", "recompute", "defer")
_LEAST_SHARE = 3e-4  # of the whole: a row that rounds to 0.0 %
_WAITING = {"device": "", "host": ", on the host"}
"""What is said of values by where they wait; of others, in what form."""


@dataclasses.dataclass(frozen=True)
class Row:
    """Values that are alike, and what becomes of them.

    Attributes:
      path: module path; what differs between the values is written as a range or a star (`GPT/block_0…11/up`).
      what: the author's name, and what people call it.
      sources: the author's lines.
      shapes: dtypes and shapes.
      count: how many values there are.
      total_bytes: bytes of all of them on the device.
      host_bytes: bytes of all of them in the host's memory.
      action: one of `ACTIONS`.
      iterations: which iterations of a loop this is about; empty outside of loops.
      seconds: what recomputing all of them costs, or would cost.
      fraction: the same, of the time of the program as written.
    """

    path: str
    what: str
    sources: tuple[str, ...]
    shapes: tuple[str, ...]
    count: int
    total_bytes: int
    host_bytes: int
    action: str
    iterations: str
    seconds: float
    fraction: float

    @property
    def saved(self) -> bool:
        return self.action == "save"

    @property
    def costs_seconds(self) -> float | None:
        """What recomputation takes; None where nothing is recomputed."""
        return self.seconds if self.action == "recompute" else None

    @property
    def would_cost_seconds(self) -> float | None:
        """What recomputation would take; None where the values are not saved."""
        return self.seconds if self.saved else None

    @property
    def seconds_per_gib(self) -> float:
        """The price of the memory: seconds of recomputation per GiB; nothing for what runs only once anyway."""
        return self.seconds / (self.all_bytes / 2**30)

    @property
    def all_bytes(self) -> int:
        """Bytes wherever they are."""
        return self.total_bytes + self.host_bytes


@dataclasses.dataclass(frozen=True)
class Total:
    """All values of one action.

    Attributes:
      action: one of `ACTIONS`.
      count: how many values there are.
      total_bytes: bytes of all of them.
    """

    action: str
    count: int
    total_bytes: int


@dataclasses.dataclass(frozen=True)
class Table:
    """What becomes of every value.

    Attributes:
      rows: by action and falling bytes; those of hardly any bytes are left out.
      totals: one per action that occurs.
      left_out: the number of values that the rows leave out, and their bytes.
    """

    rows: tuple[Row, ...]
    totals: tuple[Total, ...]
    left_out: tuple[int, int]

    def largest(self, number: int) -> Table:
        """The same with at most `number` rows, those of the most bytes; what runs only once counts least."""
        by_size = sorted(self.rows, key=lambda row: (row.action == "defer", -row.all_bytes))
        chosen = {id(row) for row in by_size[:number]}
        rest = [row for row in self.rows if id(row) not in chosen]
        count, size = self.left_out
        left_out = count + sum(row.count for row in rest), size + sum(row.total_bytes for row in rest)
        return dataclasses.replace(self, rows=tuple(row for row in self.rows if id(row) in chosen), left_out=left_out)


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """Values of one part that are alike, by id."""

    part: Part
    values: dict[int, Value]

    @property
    def total_bytes(self) -> int:
        return sum(value.total_bytes for value in self.values.values())

    @property
    def host_bytes(self) -> int:
        return sum(value.copies * value.host_bytes for value in self.values.values())

    @property
    def count(self) -> int:
        return self.part.repeats * len(self.values)

    @property
    def action(self) -> str:
        return next(iter(self.values.values())).action

    def row(self, plain_seconds: float) -> Row:
        values = list(self.values.values())
        seconds = self.part.seconds_of(self.values)
        return Row(
            path=common_path([value.path for value in values]),
            what=values[0].what + _WAITING.get(values[0].form, f", as {values[0].form}"),
            sources=tuple(dict.fromkeys(value.source for value in values if value.source)),
            shapes=tuple(dict.fromkeys(value.shape for value in values)),
            count=self.count,
            total_bytes=self.total_bytes,
            host_bytes=self.host_bytes,
            action=self.action,
            iterations=self.part.iterations,
            seconds=seconds,
            fraction=seconds / plain_seconds if plain_seconds else 0.0,
        )


def table_of(parts: Mapping[Part, Mapping[int, Value]], plain_seconds: float, most_rows: int) -> Table:
    """The rows with the most bytes, saved ones first.

    Args:
      parts: values by id for each part of a program.
      plain_seconds: time of the program as written.
      most_rows: how many rows there may be.
    """
    groups = groups_of(parts)
    least_bytes = _LEAST_SHARE * sum(group.total_bytes for group in groups)
    told = sum(group.total_bytes + group.host_bytes >= least_bytes for group in groups[:most_rows])
    rows = [group.row(plain_seconds) for group in groups[:told]]
    rows.sort(key=lambda row: (ACTIONS.index(row.action), -row.all_bytes))
    left_out = groups[told:]
    return Table(
        rows=tuple(rows),
        totals=tuple(filter(lambda total: total.count, (_total(groups, action) for action in ACTIONS))),
        left_out=(sum(group.count for group in left_out), sum(group.total_bytes for group in left_out)),
    )


def groups_of(parts: Mapping[Part, Mapping[int, Value]]) -> list[Group]:
    """Values that are alike together, by falling bytes."""
    groups: dict[tuple[Any, ...], Group] = {}
    for part, values in parts.items():
        for index, value in values.items():
            key = id(part), without_numbers(value.path), value.name, value.label, value.action, value.form
            groups.setdefault(key, Group(part, {})).values[index] = value
    return sorted(groups.values(), key=lambda group: -(group.total_bytes + group.host_bytes))


def _total(groups: Sequence[Group], action: str) -> Total:
    members = [group for group in groups if group.action == action]
    return Total(action, sum(group.count for group in members), sum(group.total_bytes for group in members))


def without_numbers(path: str) -> str:
    return re.sub(r"\d+", "#", path)


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
