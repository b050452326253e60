"""The figures of live bytes through forward and backward: one panel for the program as written, one for the plan."""

from __future__ import annotations

import itertools

import numpy as np

from jaxremat.base.budget import format_bytes
from jaxremat.report.live import KINDS
from jaxremat.report.moments import Holder, Moment
from jaxremat.report.report import COLUMNS, Course, Report
from jaxremat.show.axes import Scale, byte_ticks, second_ticks
from jaxremat.show.figure import COLOURS, Area, Dot, Figure, Label, Mark, Moved, Polyline, Spot, Spots, Swatch
from jaxremat.show.units import format_seconds

LEGEND = {"resident": "arguments and results", "saved": "saved", "recomputed": "recomputed", "transient": "transient"}
_WIDTH, _HEIGHT, _FLOOR = 400, 398, 240
_LEFT, _RIGHT, _TOP = 60, 6, 46
_LINE = 14.5
_LETTERS = 50  # of a holder's name


def panels(report: Report) -> tuple[Figure, Figure]:
    """The program as written and as planned, on one scale of bytes and one of time."""
    courses = report.written, report.planned
    tallest = max(report.numbers.budget_bytes, *(course.live.peak_bytes for course in courses)) * 1.06
    return (
        _panel(report, report.written, "as written", tallest),
        _panel(report, report.planned, "planned", tallest),
    )


def still(report: Report) -> Figure:
    """Both panels and a legend as one figure for print: it tells the moments of the peaks, and no others."""
    left, right = (
        [mark for shown in panel.marks for mark in (shown.at_rest if isinstance(shown, Spots) else (shown,))]
        for panel in panels(report)
    )
    marks = [Moved(0, 24, tuple(left)), Moved(_WIDTH, 24, tuple(right))]
    for column, (kind, text) in enumerate(LEGEND.items()):
        marks.append(Moved(_LEFT + 170 * column, 0, (Swatch(0, 4, COLOURS[kind]), Label(15, 13, text))))
    return Figure(2 * _WIDTH, _HEIGHT + 24, "Live bytes through forward and backward", tuple(marks))


def _panel(report: Report, course: Course, title: str, tallest: float) -> Figure:
    live = course.live
    x, y = Scale(0, report.seconds, _LEFT, _WIDTH - _RIGHT), Scale(0, tallest, _FLOOR, _TOP)
    peak = format_bytes(live.peak_bytes)
    marks: list[Mark] = [Label(_LEFT, 16, f"{title}, peak {peak}", bold=True)]
    marks += [mark for tick, text in byte_ticks(tallest) for mark in _grid(y(tick), text)]
    marks += _areas(course, report.seconds, x, y)
    marks += _time_axis(x, x(live.forward_seconds))
    marks += _budget(report.numbers.budget_bytes, y)
    marks.append(_peak_dot(course.peak, x, y))
    marks.append(_spots(course, x))
    return Figure(_WIDTH, _HEIGHT, f"Live bytes through forward and backward, {title}: peak {peak}", tuple(marks))


def _grid(y: float, text: str) -> list[Mark]:
    return [Polyline(((_LEFT, y), (_WIDTH - _RIGHT, y)), width=0.4), Label(_LEFT - 7, y + 4, text, "end")]


def _areas(course: Course, seconds: float, x: Scale, y: Scale) -> list[Mark]:
    edges = np.linspace(0, seconds, COLUMNS + 1)
    xs = [pixel for edge, following in itertools.pairwise(edges) for pixel in (x(edge), x(following))]
    tops = np.vstack([np.zeros(COLUMNS), np.cumsum(course.live.sampled(COLUMNS, seconds), 0)])
    return [
        Area(xs, _stairs(low, y), _stairs(high, y), COLOURS[kind]) for kind, low, high in zip(KINDS, tops, tops[1:])
    ]


def _stairs(heights: np.ndarray, y: Scale) -> list[float]:
    return [y(height) for height in heights for _ in range(2)]


def _time_axis(x: Scale, turn: float) -> list[Mark]:
    marks: list[Mark] = [Polyline(((x.first_pixel, _FLOOR), (x.last_pixel, _FLOOR)))]
    marks.append(Polyline(((turn, _TOP - 14), (turn, _FLOOR)), dashes="2 3"))
    if turn - x.first_pixel > 54:
        marks.append(Label(turn - 6, _TOP - 8, "forward", "end"))
    if x.last_pixel - turn > 66:
        marks.append(Label(turn + 6, _TOP - 8, "backward"))
    for tick, text in second_ticks(x.high):
        anchor = "start" if not tick else "end" if x(tick) > x.last_pixel - 20 else "middle"
        marks.append(Label(x(tick), _FLOOR + 16, text, anchor))
    return marks


def _budget(budget_bytes: int, y: Scale) -> list[Mark]:
    height = y(budget_bytes)
    line = Polyline(((_LEFT, height), (_WIDTH - _RIGHT, height)), "budget", 1.5, "6 4")
    text = f"budget {format_bytes(budget_bytes)}"
    return [
        line,
        Label(_WIDTH - _RIGHT, 16, text, "end"),
        Polyline(((_WIDTH - 134, 12), (_WIDTH - 116, 12)), "budget", 1.5, "6 4"),
    ]


def _peak_dot(peak: Moment, x: Scale, y: Scale) -> Mark:
    return Dot(x((peak.begin_seconds + peak.end_seconds) / 2), y(peak.total_bytes), "text", hollow=True)


def _spots(course: Course, x: Scale) -> Mark:
    """One spot per moment, as wide as it is drawn; at rest, the moment of the peak is told."""
    width = (x.last_pixel - x.first_pixel) / COLUMNS
    spots: list[Spot] = []
    column = 0
    for moment, group in itertools.groupby(course.moments):
        columns = len(list(group))
        left = x.first_pixel + column * width
        column += columns
        if moment is not None:
            spots.append(_spot(moment, left, columns * width))
    return Spots(tuple(spots), tuple(_told(course.peak, "at the peak")))


def _spot(moment: Moment, left: float, width: float) -> Spot:
    middle = left + width / 2
    cursor = Polyline(((middle, _TOP), (middle, _FLOOR)), "text", 1.0)
    when = f"at {format_seconds(moment.begin_seconds)}"
    return Spot(left, _TOP, width, _FLOOR - _TOP, (cursor, *_told(moment, when)))


def _told(moment: Moment, when: str) -> list[Mark]:
    """Who is live, below the axis."""
    top = _FLOOR + 38
    head = f"{when} {format_bytes(moment.total_bytes)} are live, while this runs:"
    marks: list[Mark] = [Label(8, top, head, bold=True, size=11)]
    marks.append(Label(8, top + _LINE, _shortened(moment.running, _LETTERS + 8), size=11))
    for line, holder in enumerate(moment.holders, 2):
        marks += _holder(holder, top + _LINE * line)
    if moment.rest_bytes > 0:
        below = top + _LINE * (len(moment.holders) + 2)
        marks.append(Label(84, below, f"{format_bytes(moment.rest_bytes)} more, in smaller buffers", "start", size=11))
    return marks


def _holder(holder: Holder, y: float) -> list[Mark]:
    return [
        Swatch(8, y - 8, COLOURS[holder.kind]),
        Label(78, y, format_bytes(holder.size_bytes), "end", size=11),
        Label(84, y, _shortened(holder.what, _LETTERS), size=11),
    ]


def _shortened(text: str, letters: int) -> str:
    return text if len(text) <= letters else "…" + text[len(text) - letters + 1 :]
