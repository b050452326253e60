"""The curve of peak memory against extra time, as text, SVG and HTML."""

from __future__ import annotations

import dataclasses
from html import escape

from jaxremat.base.budget import format_bytes
from jaxremat.show.axes import Scale, byte_ticks, percent_ticks
from jaxremat.show.figure import Dot, Figure, Label, Mark, Polyline, to_svg
from jaxremat.show.html import framed, grid
from jaxremat.show.text import aligned, terminal_width, wrapped

_WIDTH, _HEIGHT = 420, 380
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 46, 74
_FLOOR = _HEIGHT - _BOTTOM
_COLUMNS = ("", "peak", "of as written", "extra time", "predicted", "compiled")


@dataclasses.dataclass(frozen=True)
class PointView:
    """One plan or preset.

    Attributes:
      name: its budget as a share, or the preset's name.
      predicted_bytes: predicted peak.
      overhead: extra time, as a fraction.
      compiled_bytes: peak of the executable, None where nothing was compiled.
      meaning: what a preset does, in words.
    """

    name: str
    predicted_bytes: int
    overhead: float
    compiled_bytes: int | None = None
    meaning: str = ""

    @property
    def peak_bytes(self) -> int:
        return self.predicted_bytes if self.compiled_bytes is None else self.compiled_bytes


@dataclasses.dataclass(frozen=True)
class FrontView:
    """What there is to draw.

    Attributes:
      points: plans, by falling peak.
      presets: choices by hand; the first one is the program as written.
      baseline_bytes: peak of the program as written.
      target: name of the device.
      budgets_bytes: the budgets that were asked for.
      unmet_bytes: those of them in which nothing was found.
      least_bytes: the smallest peak that was reached, by a plan or in search of one.
    """

    points: tuple[PointView, ...]
    presets: tuple[PointView, ...]
    baseline_bytes: int
    target: str
    budgets_bytes: tuple[int, ...]
    unmet_bytes: tuple[int, ...]
    least_bytes: int


def front_to_text(view: FrontView, width: int | None = None) -> str:
    """Plans and presets as one table, in `width` columns or those of the terminal."""
    width = terminal_width() if width is None else width
    rows = [_COLUMNS, *_rows(view)]
    narrow = len(max(aligned(rows, range(1, 6)), key=len)) > width
    lines = aligned([row[:4] if narrow else row for row in rows], range(1, 6))
    notes = [line for note in _notes(view) for line in wrapped(note, width)]
    return "\n".join([f"peak against extra time on {view.target}", "", *lines, "", *notes])


def front_to_html(view: FrontView) -> str:
    """The curve beside the same as a table, then the notes."""
    classes = ("", "right", "right", "right", "right wide", "right wide")
    head = [(escape(name), kind) for name, kind in zip(_COLUMNS, classes)]
    rows = (("", [(escape(cell), kind) for cell, kind in zip(row, classes)]) for row in _rows(view))
    table = grid(head, rows, "points")
    notes = "".join(f'<div class="jr-line">{escape(note)}</div>' for note in _notes(view))
    figure = to_svg(front_figure(view))
    return framed(f'<div class="jr-charts"><div>{figure}</div><div>{table}</div></div>', notes)


def front_figure(view: FrontView) -> Figure:
    """Extra time over peak bytes: plans joined by a line, choices by hand as hollow points; a second axis in per cent
    of the program as written, a line for each budget, and one at the least peak that was reached."""
    everything = (*view.points, *view.presets)
    x = Scale(0, 1.08 * max(p.peak_bytes for p in everything), _LEFT, _WIDTH - _RIGHT)
    overheads = [point.overhead for point in everything]
    y = Scale(1.15 * min(0.0, *overheads), 1.15 * max(0.02, *overheads), _FLOOR, _TOP)
    marks = [*_axes(view, x, y), *_budget_lines(view, x), *_least(view, x)]
    marks.append(Polyline([(x(p.peak_bytes), y(p.overhead)) for p in view.points], "saved", 2))
    for point in view.points:
        tone = "saved" if point.compiled_bytes is None else "compiled"
        marks.append(Dot(x(point.peak_bytes), y(point.overhead), tone, note=_note(point)))
    marks += _choices_by_hand(view, x, y)
    return Figure(_WIDTH, _HEIGHT, "Extra time against peak bytes, plans and choices by hand", tuple(marks))


def _axes(view: FrontView, x: Scale, y: Scale) -> list[Mark]:
    marks: list[Mark] = []
    for number, text in percent_ticks(y.high, y.low):
        marks.append(Polyline(((_LEFT, y(number)), (_WIDTH - _RIGHT, y(number))), width=0.4))
        marks.append(Label(_LEFT - 8, y(number) + 4, text, "end"))
    for number, text in percent_ticks(x.high / max(view.baseline_bytes, 1)):
        marks.append(Label(x(number * view.baseline_bytes), _FLOOR + 17, text, "middle"))
    for number, text in byte_ticks(x.high):
        marks.append(Label(x(number), _FLOOR + 34, text, "middle"))
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    marks.append(
        Label(middle, _HEIGHT - 14, f"peak on {view.target}: of the program as written, and in bytes", "middle")
    )
    marks.append(Label(_LEFT - 8, 16, "extra time", "start"))
    return marks


def _budget_lines(view: FrontView, x: Scale) -> list[Mark]:
    """A dashed line for each budget; those in which nothing was found are told in the notes."""
    lines: list[Mark] = [
        Polyline(((x(size), _FLOOR), (x(size), _FLOOR - 14)), "budget", 1.5, "3 2") for size in view.budgets_bytes
    ]
    key = Polyline(((_WIDTH - 112, 6), (_WIDTH - 112, 18)), "budget", 1.5, "3 2")
    return [*lines, key, Label(_WIDTH - 104, 16, "budgets asked")]


def _least(view: FrontView, x: Scale) -> list[Mark]:
    left = x(view.least_bytes)
    line = Polyline(((left, _TOP - 8), (left, _FLOOR)), "muted", 1.0, "2 3")
    return [line, Label(left + 4, _TOP - 2, f"least reached {format_bytes(view.least_bytes)}")]


def _choices_by_hand(view: FrontView, x: Scale, y: Scale) -> list[Mark]:
    """Hollow points; those that coincide share a label."""
    at: dict[tuple[int, int], list[PointView]] = {}
    for preset in view.presets:
        at.setdefault((round(x(preset.peak_bytes)), round(y(preset.overhead))), []).append(preset)
    marks: list[Mark] = []
    for (left, top), presets in at.items():
        marks.append(Dot(left, top, "budget", hollow=True, note="; ".join(map(_note, presets))))
        anchor, aside = ("end", -9) if left > _WIDTH - 120 else ("start", 9)
        marks.append(Label(left + aside, top - 7, ", ".join(p.name for p in presets), anchor, bold=True))
    return marks


def _rows(view: FrontView) -> list[tuple[str, ...]]:
    plans = [_row(f"plan {point.name}", point, view.baseline_bytes) for point in view.points]
    hands = [_row(f"by hand: {preset.name}", preset, view.presets[0].predicted_bytes) for preset in view.presets]
    return plans + hands


def _row(name: str, point: PointView, baseline_bytes: int) -> tuple[str, ...]:
    compiled = "" if point.compiled_bytes is None else format_bytes(point.compiled_bytes)
    share = f"{point.peak_bytes / max(baseline_bytes, 1):.0%}"
    overhead = f"{point.overhead:.1%}"
    return name, format_bytes(point.peak_bytes), share, overhead, format_bytes(point.predicted_bytes), compiled


def _notes(view: FrontView) -> list[str]:
    unmet = ", ".join(map(format_bytes, view.unmet_bytes))
    least = f"the least peak that was reached is {format_bytes(view.least_bytes)}"
    notes = [f"nothing was found within {unmet}; {least}"] if unmet else [least]
    return notes + [f"by hand, {preset.name}: {preset.meaning}" for preset in view.presets if preset.meaning]


def _note(point: PointView) -> str:
    return f"{point.name}: {format_bytes(point.peak_bytes)}, {point.overhead:.1%} extra time"
