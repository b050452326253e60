"""Figures as a few kinds of marks in pixels, and the marks as SVG. No plotting library, no script, no style sheet."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from html import escape

COLOURS = {
    "parameters": "#9aa0a6",
    "saved": "#0072b2",
    "recomputed": "#e69f00",
    "transient": "#56b4e9",
    "budget": "#d55e00",
    "compiled": "#009e73",
}
"""After Okabe and Ito (Color Universal Design, 2008): told apart by people with any kind of colour vision."""


@dataclasses.dataclass(frozen=True)
class Area:
    """A filled band between two lines over the same x."""

    x: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    colour: str


@dataclasses.dataclass(frozen=True)
class Line:
    """A line through points; `tone` is a name of `COLOURS`, "muted" or "text"."""

    points: Sequence[tuple[float, float]]
    tone: str = "muted"
    width: float = 1.0
    dashes: str = ""


@dataclasses.dataclass(frozen=True)
class Dot:
    """A marked point; hollow ones are for comparison. `note` shows when the pointer rests on it."""

    x: float
    y: float
    tone: str
    hollow: bool = False
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Label:
    """Text at a point; `anchor` is "start", "middle" or "end"."""

    x: float
    y: float
    text: str
    anchor: str = "start"
    tone: str = "text"
    bold: bool = False


@dataclasses.dataclass(frozen=True)
class Swatch:
    """A small square of a colour: the key of a legend."""

    x: float
    y: float
    colour: str


Mark = Area | Line | Dot | Label | Swatch


@dataclasses.dataclass(frozen=True)
class Figure:
    """Marks on a canvas.

    Attributes:
      width, height: in pixels.
      title: what it shows, for those who cannot see it.
      marks: drawn in order.
    """

    width: int
    height: int
    title: str
    marks: tuple[Mark, ...]


def to_svg(figure: Figure) -> str:
    """A figure as an inline SVG element that scales down to its container."""
    marks = "".join(map(_to_svg, figure.marks))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {figure.width} {figure.height}" role="img"'
        f' aria-label="{escape(figure.title, quote=True)}" width="{figure.width}"'
        ' style="max-width:100%;height:auto;display:block" font-family="system-ui,sans-serif" font-size="12">'
        f"{marks}</svg>"
    )


def _to_svg(mark: Mark) -> str:
    match mark:
        case Area():
            there = [f"{x:.1f},{y:.1f}" for x, y in zip(mark.x, mark.high)]
            back = [f"{x:.1f},{y:.1f}" for x, y in zip(reversed(mark.x), reversed(mark.low))]
            return f'<polygon points="{" ".join(there + back)}" fill="{mark.colour}"/>'
        case Line():
            points = " ".join(f"{x:.1f},{y:.1f}" for x, y in mark.points)
            dashes = f' stroke-dasharray="{mark.dashes}"' if mark.dashes else ""
            stroke = f'{_paint("stroke", mark.tone)} stroke-width="{mark.width}"{dashes}'
            return f'<polyline points="{points}" fill="none" {stroke}/>'
        case Dot():
            fill = 'fill="none"' if mark.hollow else _paint("fill", mark.tone)
            note = f"<title>{escape(mark.note)}</title>" if mark.note else ""
            circle = f'<circle cx="{mark.x:.1f}" cy="{mark.y:.1f}" r="4.5" {fill} stroke-width="2"'
            return f"{circle} {_paint('stroke', mark.tone)}>{note}</circle>"
        case Label():
            weight = ' font-weight="600"' if mark.bold else ""
            place = f'x="{mark.x:.1f}" y="{mark.y:.1f}" text-anchor="{mark.anchor}"'
            return f"<text {place} {_paint('fill', mark.tone)}{weight}>{escape(mark.text)}</text>"
        case Swatch():
            return f'<rect x="{mark.x:.1f}" y="{mark.y:.1f}" width="11" height="11" rx="2" fill="{mark.colour}"/>'


def _paint(property_name: str, tone: str) -> str:
    """A colour of the palette, or the surrounding text's, so that light and dark pages both work."""
    if tone in COLOURS:
        return f'{property_name}="{COLOURS[tone]}"'
    opacity = ' opacity="0.6"' if tone == "muted" else ""
    return f'{property_name}="currentColor"{opacity}'
