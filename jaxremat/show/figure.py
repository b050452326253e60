"""Figures as a few kinds of marks in pixels, and the marks as SVG. No plotting library, no script, no style sheet."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from html import escape

COLOURS = {
    "resident": "#9aa0a6",
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
class Polyline:
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
    """Text at a point; `anchor` is "start", "middle" or "end"; `size` in pixels, 0 for that of the figure.

    It has the colour of the text around the figure, so that it can be read on light and on dark pages.
    """

    x: float
    y: float
    text: str
    anchor: str = "start"
    bold: bool = False
    size: float = 0


@dataclasses.dataclass(frozen=True)
class Swatch:
    """A small square of a colour: the key of a legend."""

    x: float
    y: float
    colour: str


@dataclasses.dataclass(frozen=True)
class Spot:
    """A rectangle that the pointer, or a finger, can rest on; meanwhile its marks show, and those at rest do not.

    A page does this with two rules of style, `REVEAL`, and no script.
    """

    x: float
    y: float
    width: float
    height: float
    marks: tuple[Mark, ...]


@dataclasses.dataclass(frozen=True)
class Spots:
    """Spots, of which at most one is rested on, and what shows while none is."""

    spots: tuple[Spot, ...]
    at_rest: tuple[Mark, ...]


@dataclasses.dataclass(frozen=True)
class Moved:
    """A figure within a figure, moved to the right and down."""

    x: float
    y: float
    marks: tuple[Mark, ...]


type Mark = Area | Polyline | Dot | Label | Swatch | Spots | Moved

REVEAL = (
    ".jaxremat-spot{cursor:pointer}"  # touch screens let the finger rest on what can be clicked
    ".jaxremat-spot:hover>.jaxremat-shown{visibility:visible}"
    ".jaxremat-spots:hover+.jaxremat-rest{visibility:hidden}"
)


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
        f' aria-label="{escape(figure.title, quote=True)}" width="100%"'
        ' style="height:auto;display:block" fill="currentColor" font-family="system-ui,sans-serif" font-size="12">'
        f"{marks}</svg>"
    )


def _to_svg(mark: Mark) -> str:
    match mark:
        case Area():
            there, back = zip(mark.x, mark.high), zip(reversed(mark.x), reversed(mark.low))
            return f'<polygon points="{_points([*there, *back])}" fill="{mark.colour}"/>'
        case Polyline():
            dashes = f' stroke-dasharray="{mark.dashes}"' if mark.dashes else ""
            stroke = f'{_paint("stroke", mark.tone)} stroke-width="{mark.width}"{dashes}'
            return f'<polyline points="{_points(mark.points)}" fill="none" {stroke}/>'
        case Dot():
            return _dot(mark)
        case Label():
            return _label(mark)
        case Swatch():
            place = f'x="{_pixels(mark.x)}" y="{_pixels(mark.y)}"'
            return f'<rect {place} width="9" height="9" rx="2" fill="{mark.colour}"/>'
        case Spots():
            spots = "".join(map(_spot, mark.spots))
            return f'<g class="jaxremat-spots">{spots}</g><g class="jaxremat-rest">{_all(mark.at_rest)}</g>'
        case Moved():
            return f'<g transform="translate({mark.x:g} {mark.y:g})">{_all(mark.marks)}</g>'


def _all(marks: Sequence[Mark]) -> str:
    return "".join(map(_to_svg, marks))


def _dot(dot: Dot) -> str:
    fill = 'fill="none"' if dot.hollow else _paint("fill", dot.tone)
    note = f"<title>{escape(dot.note)}</title>" if dot.note else ""
    circle = f'<circle cx="{_pixels(dot.x)}" cy="{_pixels(dot.y)}" r="4.5" {fill} stroke-width="2"'
    return f"{circle} {_paint('stroke', dot.tone)}>{note}</circle>"


def _label(label: Label) -> str:
    weight = ' font-weight="600"' if label.bold else ""
    anchor = "" if label.anchor == "start" else f' text-anchor="{label.anchor}"'
    size = f' font-size="{label.size:g}"' if label.size else ""
    place = f'x="{_pixels(label.x)}" y="{_pixels(label.y)}"{anchor}{size}{weight}'
    return f"<text {place}>{escape(label.text)}</text>"


def _spot(spot: Spot) -> str:
    place = f'x="{_pixels(spot.x)}" y="{_pixels(spot.y)}" width="{_pixels(spot.width)}" height="{_pixels(spot.height)}"'
    return (
        f'<g class="jaxremat-spot"><rect {place} fill="transparent"/>'
        f'<g class="jaxremat-shown" visibility="hidden" pointer-events="none">{_all(spot.marks)}</g></g>'
    )


def _points(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{_pixels(x)},{_pixels(y)}" for x, y in points)


def _pixels(number: float) -> str:
    return f"{number:.1f}".removesuffix(".0")


def _paint(property_name: str, tone: str) -> str:
    """A colour of the palette, or the surrounding text's, so that light and dark pages both work."""
    if tone in COLOURS:
        return f'{property_name}="{COLOURS[tone]}"'
    opacity = ' opacity="0.6"' if tone == "muted" else ""
    return f'{property_name}="currentColor"{opacity}'
