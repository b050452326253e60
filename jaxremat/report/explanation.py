"""Why values are saved or not, and at which budget that would change."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from jaxremat.base.errors import ArgumentError
from jaxremat.report.parts import Part
from jaxremat.report.rows import Group, Row, Table, groups_of, table_of
from jaxremat.report.values import Value

_MOST_ROWS = 12  # lines of an answer
MOST_PROBES = 6
"""How many plans a search for a turning budget makes."""


@dataclasses.dataclass(frozen=True)
class Explanation:
    """Why some values are saved or not.

    Attributes:
      pattern: what was asked for; None for everything.
      table: what becomes of the values that match.
      prices: (the most that the plan pays for recomputing, the least that what it saves would cost), in seconds per
        GiB; None where nothing is recomputed, or saved.
    """

    pattern: str | None
    table: Table
    prices: tuple[float | None, float | None]


@dataclasses.dataclass(frozen=True)
class TurningBudget:
    """The budget at which the largest of some values is treated otherwise.

    Attributes:
      row: that value, and those that are alike.
      budget_bytes: the budget; None where every budget that can be met treats it alike.
    """

    row: Row
    budget_bytes: int | None


def explain(
    parts: Mapping[Part, Mapping[int, Value]], pattern: str | None, table: Table, plain_seconds: float
) -> Explanation:
    """Why the values whose path, name, operation or line contains `pattern` are saved or not.

    Args:
      parts: values by id for each part of a plan.
      pattern: a part of a module path (`block_3/attention`), of a name, of a primitive, or of a source line; None for
        all.
      table: of all values, for comparison.
      plain_seconds: time of the program as written.

    Raises:
      ArgumentError: if nothing matches; the message lists some that exist.
    """
    return Explanation(pattern, table_of(matching(parts, pattern), plain_seconds, _MOST_ROWS), _prices(table))


def matching(parts: Mapping[Part, Mapping[int, Value]], pattern: str | None) -> dict[Part, dict[int, Value]]:
    """The values that a pattern matches; raises ArgumentError where there are none."""
    found = {
        part: {index: value for index, value in values.items() if pattern is None or pattern in _text(value)}
        for part, values in parts.items()
    }
    if not any(found.values()):
        known = sorted({value.path or value.what for values in parts.values() for value in values.values()})
        raise ArgumentError(f"no value matches {pattern!r}; there are {', '.join(known[:12]) or 'none'}")
    return found


def turning_budget(
    parts: Mapping[Part, Mapping[int, Value]],
    plain_seconds: float,
    span: Callable[[bool], tuple[int, int]],
    saves_at: Callable[[int, int], bool],
) -> TurningBudget:
    """Where the largest of some values of the program outside of loops changes its mind, by bisection.

    Args:
      parts: the values, by id for each part of a plan.
      plain_seconds: time of the program as written.
      span: from whether a value is saved to the budgets to search between: this plan's, and the farthest.
      saves_at: whether the plan for a budget saves a value; it plans anew.
    """
    group: Group = groups_of(parts)[0]
    index, value = max(group.values.items(), key=lambda item: item[1].size_bytes)
    near, far = span(value.saved)
    row = group.row(plain_seconds)
    if saves_at(far, index) == value.saved:
        return TurningBudget(row, None)
    for _ in range(MOST_PROBES - 1):
        middle = (near + far) // 2
        near, far = (middle, far) if saves_at(middle, index) == value.saved else (near, middle)
    return TurningBudget(row, far)


def _text(value: Value) -> str:
    return f"{value.title}  {value.operation}  {value.source}"


def _prices(table: Table) -> tuple[float | None, float | None]:
    paid = [row.seconds_per_gib for row in table.rows if row.action == "recompute"]
    spared = [row.seconds_per_gib for row in table.rows if row.saved]
    return max(paid, default=None), min(spared, default=None)
