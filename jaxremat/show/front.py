"""The curve of peak memory against extra time, as text, SVG and HTML."""

from __future__ import annotations

import dataclasses

from jaxremat.base.budget import format_bytes
from jaxremat.show.axes import Scale, byte_ticks, percent_ticks
from jaxremat.show.figure import Dot, Figure, Label, Line, Mark, to_svg
from jaxremat.show.html import framed, table

_WIDTH, _HEIGHT = 720, 380
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 24, 24, 64
_COLUMNS = ("", "peak", "of the peak as written", "extra time", "predicted", "compiled")


@dataclasses.dataclass(frozen=True)
class PointView:
    """One plan or preset.

    Attributes:
      name: its budget as a share, or the preset's name.
      predicted_bytes: predicted peak.
      overhead: extra time, as a fraction.
      compiled_bytes: peak of the executable, None where nothing was compiled.
    """

    name: str
    predicted_bytes: int
    overhead: float
    compiled_bytes: int | None = None

    @property
    def peak_bytes(self) -> int:
        return self.predicted_bytes if self.compiled_bytes is None else self.compiled_bytes


@dataclasses.dataclass(frozen=True)
class FrontView:
    """What there is to draw.

    Attributes:
      points: plans, by falling peak.
      presets: choices by hand.
      baseline_bytes: peak of the program as written.
      target: name of the device.
      unmet_bytes: budgets in which nothing was found.
    """

    points: tuple[PointView, ...]
    presets: tuple[PointView, ...]
    baseline_bytes: int
    target: str
    unmet_bytes: tuple[int, ...]


def front_to_text(view: FrontView) -> str:
    """Plans and presets as one table."""
    rows = [_COLUMNS, *_rows(view)]
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = [
        "  ".join(f"{cell:>{w}}" if i else f"{cell:<{w}}" for i, (cell, w) in enumerate(zip(row, widths)))
        for row in rows
    ]
    return "\n".join([f"peak against extra time on {view.target}", "", *map(str.rstrip, lines), *_notes(view)])


def front_to_html(view: FrontView) -> str:
    """The curve, then the same table."""
    notes = "".join(f"<p>{note}</p>" for note in _notes(view))
    return framed(to_svg(front_figure(view)), table(_COLUMNS, _rows(view), range(1, len(_COLUMNS))), notes)


def front_figure(view: FrontView) -> Figure:
    """Extra time over peak bytes: plans joined by a line, choices by hand as hollow points."""
    everything = (*view.points, *view.presets)
    x = Scale(0, 1.08 * max(p.peak_bytes for p in everything), _LEFT, _WIDTH - _RIGHT)
    y = Scale(0, 1.15 * max(max(p.overhead for p in everything), 0.02), _HEIGHT - _BOTTOM, _TOP)
    marks: list[Mark] = []
    for number, text in percent_ticks(y.high):
        marks.append(Line(((_LEFT, y(number)), (_WIDTH - _RIGHT, y(number))), width=0.4))
        marks.append(Label(_LEFT - 8, y(number) + 4, text, "end", "muted"))
    for number, text in byte_ticks(x.high):
        marks.append(Label(x(number), y(0) + 18, text, "middle", "muted"))
    marks.append(Label((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 12, f"peak on {view.target}", "middle"))
    marks.append(Label(_LEFT + 6, _TOP + 2, "extra time"))
    marks.append(Line([(x(p.peak_bytes), y(p.overhead)) for p in view.points], "saved", 2))
    for point in view.points:
        tone = "saved" if point.compiled_bytes is None else "compiled"
        marks.append(Dot(x(point.peak_bytes), y(point.overhead), tone, note=_note(point)))
    marks += _choices_by_hand(view, x, y)
    return Figure(_WIDTH, _HEIGHT, "Extra time against peak bytes, plans and choices by hand", tuple(marks))


def _choices_by_hand(view: FrontView, x: Scale, y: Scale) -> list[Mark]:
    """Hollow points; those that coincide share a label."""
    at: dict[tuple[int, int], list[PointView]] = {}
    for preset in view.presets:
        at.setdefault((round(x(preset.peak_bytes)), round(y(max(preset.overhead, 0.0)))), []).append(preset)
    marks: list[Mark] = []
    for (left, top), presets in at.items():
        marks.append(Dot(left, top, "budget", hollow=True, note="; ".join(map(_note, presets))))
        anchor, aside = ("end", -9) if left > _WIDTH - 120 else ("start", 9)
        marks.append(Label(left + aside, top - 7, ", ".join(p.name for p in presets), anchor, "budget", bold=True))
    return marks


def _rows(view: FrontView) -> list[tuple[str, ...]]:
    plans = [_row(f"plan {point.name}", point, view.baseline_bytes) for point in view.points]
    hands = [_row(f"by hand: {preset.name}", preset, view.presets[0].predicted_bytes) for preset in view.presets]
    return plans + hands


def _row(name: str, point: PointView, baseline_bytes: int) -> tuple[str, ...]:
    compiled = "" if point.compiled_bytes is None else format_bytes(point.compiled_bytes)
    share = f"{point.peak_bytes / max(baseline_bytes, 1):.0%}"
    return (
        name,
        format_bytes(point.peak_bytes),
        share,
        f"{point.overhead:.1%}",
        format_bytes(point.predicted_bytes),
        compiled,
    )


def _notes(view: FrontView) -> list[str]:
    unmet = ", ".join(map(format_bytes, view.unmet_bytes))
    return [f"nothing was found within {unmet}"] if unmet else []


def _note(point: PointView) -> str:
    return f"{point.name}: {format_bytes(point.peak_bytes)}, {point.overhead:.1%} extra time"
