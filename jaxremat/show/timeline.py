"""The figure of live bytes through forward and backward, before and after."""

from __future__ import annotations

import itertools

import numpy as np

from jaxremat.base.budget import format_bytes
from jaxremat.show.axes import Scale, byte_ticks, second_ticks
from jaxremat.show.bands import KINDS, Bands
from jaxremat.show.figure import COLOURS, Area, Dot, Figure, Label, Line, Mark, Swatch
from jaxremat.show.report import Report

_WIDTH, _HEIGHT = 920, 300
_LEFT, _GAP, _RIGHT, _TOP, _BOTTOM = 72, 24, 8, 44, 54
_COLUMNS = 240


def timeline_figure(report: Report) -> Figure:
    """Two panels on one scale of bytes: the program as written and as planned."""
    seconds = max(report.baseline.seconds, report.planned.seconds)
    tallest = max(report.baseline.peak_bytes, report.planned.peak_bytes, report.budget_bytes) * 1.06
    y = Scale(0, tallest, _HEIGHT - _BOTTOM, _TOP)
    panel = (_WIDTH - _LEFT - _GAP - _RIGHT) / 2
    lefts = (_LEFT, _LEFT + panel + _GAP)
    marks: list[Mark] = [mark for tick, text in byte_ticks(tallest) for mark in _grid(y(tick), text)]
    for left, title, bands in zip(lefts, ("as written", "planned"), (report.baseline, report.planned)):
        marks += _panel(bands, title, Scale(0, seconds, left, left + panel), y)
    budget = y(report.budget_bytes)
    marks.append(Line(((_LEFT, budget), (_WIDTH - _RIGHT, budget)), "budget", 1.5, "6 4"))
    marks.append(
        Label(_WIDTH - _RIGHT, budget - 5, f"budget {format_bytes(report.budget_bytes)}", "end", "budget", bold=True)
    )
    marks += _legend()
    peaks = f"{format_bytes(report.baseline.peak_bytes)} as written, {format_bytes(report.planned.peak_bytes)} planned"
    return Figure(_WIDTH, _HEIGHT, f"Live bytes through forward and backward: peak {peaks}", tuple(marks))


def _panel(bands: Bands, title: str, x: Scale, y: Scale) -> list[Mark]:
    floor = y(0)
    marks: list[Mark] = [Label(x.first_pixel, _TOP - 26, title, bold=True)]
    edges = np.linspace(0, x.high, _COLUMNS + 1)
    xs = [pixel for edge, following in itertools.pairwise(edges) for pixel in (x(edge), x(following))]
    live = bands.sampled(_COLUMNS, x.high)
    tops = np.vstack([np.zeros(_COLUMNS), np.cumsum(live, 0)])
    for kind, low, high in zip(KINDS, tops, tops[1:]):
        marks.append(Area(xs, _stairs(low, y), _stairs(high, y), COLOURS[kind]))
    marks.append(Line(((x.first_pixel, floor), (x.last_pixel, floor))))
    turn = x(bands.forward_seconds)
    marks.append(Line(((turn, _TOP - 8), (turn, floor)), dashes="2 3"))
    marks += [
        Label(turn - 6, _TOP - 10, "forward", "end", "muted"),
        Label(turn + 6, _TOP - 10, "backward", "start", "muted"),
    ]
    for tick, text in second_ticks(x.high):
        anchor = "start" if not tick else "end" if x(tick) > x.last_pixel - 20 else "middle"
        marks.append(Label(x(tick), floor + 16, text, anchor, "muted"))
    begin = bands.end_seconds[bands.peak_step - 1] if bands.peak_step else 0.0
    peak = x((begin + bands.end_seconds[bands.peak_step]) / 2), y(bands.peak_bytes)
    marks.append(Dot(*peak, "text", hollow=True, note=f"peak {format_bytes(bands.peak_bytes)}"))
    anchor = "end" if peak[0] > (x.first_pixel + x.last_pixel) / 2 else "start"
    aside = -9 if anchor == "end" else 9
    marks.append(Label(peak[0] + aside, peak[1] - 6, f"peak {format_bytes(bands.peak_bytes)}", anchor, bold=True))
    return marks


def _stairs(heights: np.ndarray, y: Scale) -> list[float]:
    return [y(height) for height in heights for _ in range(2)]


def _grid(y: float, text: str) -> list[Mark]:
    return [Line(((_LEFT, y), (_WIDTH - _RIGHT, y)), width=0.4), Label(_LEFT - 8, y + 4, text, "end", "muted")]


def _legend() -> list[Mark]:
    marks: list[Mark] = []
    for i, kind in enumerate(KINDS):
        left = _LEFT + 120 * i
        marks += [Swatch(left, _HEIGHT - 22, COLOURS[kind]), Label(left + 17, _HEIGHT - 12, kind)]
    return marks
