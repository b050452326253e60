"""A report as text for a terminal: at most 80 lines, at most 120 columns."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxremat.base.budget import format_bytes
from jaxremat.show.bands import Bands
from jaxremat.show.folding import Row
from jaxremat.show.report import Fact, Report

MOST_ROWS_AS_TEXT = 40
_COLUMNS = 72
_LEVELS = " ▁▂▃▄▅▆▇█"
_HEADER = ("", "value", "", "shape", "bytes", "running again", "per GiB", "source")


def to_text(report: Report) -> str:
    """Headline, timeline, decisions, warnings."""
    sections = [headline(report.facts), _timeline(report), _table(report), list(report.loops), _warned(report.warnings)]
    return "\n\n".join("\n".join(section) for section in sections if section)


def headline(facts: Sequence[Fact]) -> list[str]:
    """One line per fact."""
    return [f"{fact.label:<10}  {fact.value:>10}   {fact.note}".rstrip() for fact in facts]


def format_seconds(seconds: float) -> str:
    """`1.2 s`, `35.1 ms`, `7 µs`."""
    if seconds >= 1:
        return f"{seconds:.1f} s"
    return f"{seconds * 1e3:.1f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.0f} µs"


def _timeline(report: Report) -> list[str]:
    seconds = max(report.baseline.seconds, report.planned.seconds)
    tallest = max(report.baseline.peak_bytes, report.planned.peak_bytes)
    lines = []
    for label, bands in (("as written", report.baseline), ("planned", report.planned)):
        lines.append(f"{label:<10}  {format_bytes(bands.peak_bytes):>10}   {_sparkline(bands, seconds, tallest)}")
    return [f"{'live bytes':<10}  {'peak':>10}   {_ruler(report.planned, seconds)}", *lines]


def _sparkline(bands: Bands, seconds: float, tallest: int) -> str:
    heights = bands.sampled(_COLUMNS, seconds).sum(0)
    levels = np.ceil(heights / max(tallest, 1) * (len(_LEVELS) - 1)).astype(int)
    return "".join(_LEVELS[level] for level in levels).rstrip()


def _ruler(bands: Bands, seconds: float) -> str:
    """Where the forward of the plan ends and its backward begins."""
    forward = round(bands.forward_seconds / max(seconds, 1e-30) * _COLUMNS)
    backward = round(bands.seconds / max(seconds, 1e-30) * _COLUMNS) - forward
    return f"{'forward':─<{forward}}"[:forward] + f"{'│backward':─<{backward}}"[: max(backward, 0)]


def _table(report: Report) -> list[str]:
    cells = [_HEADER, *map(_cells, report.rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(_HEADER))]
    right = (2, 4, 5, 6)
    lines = [
        "  ".join(
            f"{cell:>{w}}" if c in right else f"{cell:<{w}}" for c, (cell, w) in enumerate(zip(row, widths))
        ).rstrip()
        for row in cells
    ]
    number, size = report.left_out
    if number:
        lines.append(f"and {number} smaller values, {format_bytes(size)}")
    return lines


def _cells(row: Row) -> tuple[str, ...]:
    value = f"{row.path}  {row.what}" if row.path else row.what
    cost = f"{row.fraction:.2%} {format_seconds(row.seconds)}"
    return (
        row.action,
        _shortened(value, 52),
        f"× {row.count}" if row.count > 1 else "",
        row.shape,
        format_bytes(row.total_bytes),
        cost,
        format_seconds(row.seconds_per_gib),
        row.source,
    )


def _shortened(text: str, width: int) -> str:
    return text if len(text) <= width else "…" + text[len(text) - width + 1 :]


def _warned(warnings: Sequence[str]) -> list[str]:
    return [f"warning: {warning}" for warning in warnings]
