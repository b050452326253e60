"""A report as text that fits a terminal: at most 80 lines, as wide as the terminal is, 72 columns at least."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence

import numpy as np

from jaxremat.base.budget import format_bytes
from jaxremat.report.report import Course, Report
from jaxremat.report.rows import Row
from jaxremat.show.sentences import (
    Fact,
    facts_of,
    loop_sentence,
    peak_sentence,
    rest_sentence,
    shape_of,
    source_of,
    total_sentence,
)
from jaxremat.show.units import format_seconds

MOST_ROWS = 12
_NARROWEST = 72
_WIDEST = 160
_INDENT = 25
_VALUE = "value"
_NARROWEST_VALUE = 24
_LEVELS = " ▁▂▃▄▅▆▇█"
_COLUMNS = ("", _VALUE, "×", "bytes", "costs", "would cost", "per GiB", "shape", "source")
_DROPPED_FIRST = ("source", "shape", "per GiB")
"""Columns that a narrow terminal does without, in this order."""
_FLUSH_RIGHT = ("bytes", "costs", "would cost", "per GiB")


def to_text(report: Report, width: int | None = None) -> str:
    """Headline, peak, timeline, what becomes of the values, loops, warnings.

    Args:
      report: what to write.
      width: columns; those of the terminal (or of the variable COLUMNS) by default.
    """
    width = terminal_width() if width is None else width
    sections = [
        [*headline(facts_of(report.numbers), width), *wrapped(peak_sentence(report), width)],
        _timeline(report, width),
        _table(report, width),
        [line for loop in report.loops for line in wrapped(loop_sentence(loop), width)],
        [line for warning in report.warnings for line in wrapped(f"warning: {warning}", width)],
    ]
    return "\n\n".join("\n".join(section) for section in sections if section)


def terminal_width() -> int:
    """Columns of the terminal, within reason."""
    return min(max(shutil.get_terminal_size().columns, _NARROWEST), _WIDEST)


def headline(facts: Sequence[Fact], width: int) -> list[str]:
    """Each fact on a line, or more where its note is long."""
    return [line for fact in facts for line in _fact(fact, width)]


def wrapped(text: str, width: int, indent: str = "  ") -> list[str]:
    """Text in lines of at most `width`; all but the first indented."""
    return textwrap.wrap(text, width, subsequent_indent=indent, break_on_hyphens=False)


def aligned(rows: Sequence[Sequence[str]], right: Sequence[int]) -> list[str]:
    """Cells in columns as wide as their widest; those of `right` flush right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return [
        "  ".join(
            f"{cell:>{w}}" if c in right else f"{cell:<{w}}" for c, (cell, w) in enumerate(zip(row, widths))
        ).rstrip()
        for row in rows
    ]


def _fact(fact: Fact, width: int) -> list[str]:
    start = f"{fact.label:<10}  {fact.value:>10}   "
    return textwrap.wrap(start + fact.note, width, subsequent_indent=" " * _INDENT, drop_whitespace=True) or [start]


def _timeline(report: Report, width: int) -> list[str]:
    columns = width - _INDENT
    tallest = max(course.live.peak_bytes for course in (report.written, report.planned))
    lines = [f"{'live bytes':<10}  {'peak':>10}   {_ruler(report.planned, report.seconds, columns)}"]
    for label, course in (("as written", report.written), ("planned", report.planned)):
        peak = format_bytes(course.live.peak_bytes)
        lines.append(f"{label:<10}  {peak:>10}   {_sparkline(course, report.seconds, columns, tallest)}")
    return lines


def _sparkline(course: Course, seconds: float, columns: int, tallest: int) -> str:
    heights = course.live.sampled(columns, seconds).sum(0)
    levels = np.ceil(heights / max(tallest, 1) * (len(_LEVELS) - 1)).astype(int)
    return "".join(_LEVELS[level] for level in levels).rstrip()


def _ruler(course: Course, seconds: float, columns: int) -> str:
    """Where the forward of the plan ends and its backward begins."""
    forward = round(course.live.forward_seconds / max(seconds, 1e-30) * columns)
    backward = round(course.live.seconds / max(seconds, 1e-30) * columns) - forward
    return f"{'forward':─<{forward}}"[:forward] + f"{'│backward':─<{backward}}"[: max(backward, 0)]


def _table(report: Report, width: int) -> list[str]:
    table = report.table.largest(MOST_ROWS)
    columns = list(_COLUMNS)
    cells = [dict(zip(_COLUMNS, _COLUMNS)), *map(_cells, table.rows)]
    for dropped in _DROPPED_FIRST:
        if _room_for_value(cells, columns, width) >= min(_NARROWEST_VALUE * 2, _widest(cells, _VALUE)):
            break
        columns.remove(dropped)
    room = max(_room_for_value(cells, columns, width), _NARROWEST_VALUE)
    rows = [[_shortened(row[c], room) if c == _VALUE else row[c] for c in columns] for row in cells]
    lines = aligned(rows, [columns.index(c) for c in columns if c in _FLUSH_RIGHT])
    closing = ["; ".join(map(total_sentence, table.totals)), rest_sentence(table.left_out)]
    return [*lines, *(line for text in closing if text for line in wrapped(text, width))]


def _room_for_value(cells: Sequence[dict[str, str]], columns: Sequence[str], width: int) -> int:
    others = sum(_widest(cells, column) for column in columns if column != _VALUE)
    return width - others - 2 * (len(columns) - 1)


def _widest(cells: Sequence[dict[str, str]], column: str) -> int:
    return max(len(row[column]) for row in cells)


def _cells(row: Row) -> dict[str, str]:
    value = f"{row.path}  {row.what}" if row.path else row.what
    cells = (
        row.action,
        f"{value}  ({row.iterations})" if row.iterations else value,
        f"× {row.count}" if row.count > 1 else "",
        format_bytes(row.all_bytes),
        "" if row.costs_seconds is None else format_seconds(row.costs_seconds),
        "" if row.would_cost_seconds is None else format_seconds(row.would_cost_seconds),
        "" if row.action == "defer" else format_seconds(row.seconds_per_gib),
        shape_of(row),
        source_of(row),
    )
    return dict(zip(_COLUMNS, cells))


def _shortened(text: str, width: int) -> str:
    return text if len(text) <= width else "…" + text[len(text) - width + 1 :]
