"""Marks as SVG: every kind, escaped, in colours that can be told apart."""

import itertools
from xml.etree import ElementTree

import pytest

from jaxremat.show.figure import (
    COLOURS,
    Area,
    Dot,
    Figure,
    Label,
    Moved,
    Polyline,
    Spot,
    Spots,
    Swatch,
    to_svg,
)

INSIDE = (Label(1, 2, "<b>", "middle", bold=True, size=9),)
MARKS = [
    Area((0, 1), (0, 0), (2, 3), COLOURS["saved"]),
    Polyline(((0, 0), (1, 1.25)), "budget", 2, "3 2"),
    Dot(3, 4, "saved", hollow=True, note='5 < "6"'),
    Swatch(1, 1, COLOURS["transient"]),
    Spots((Spot(0, 0, 5, 5, INSIDE),), INSIDE),
    Moved(10, 20, INSIDE),
]


def parsed(*marks, title="a figure"):
    return ElementTree.fromstring(to_svg(Figure(100, 50, title, marks)))


@pytest.mark.parametrize("mark", MARKS, ids=lambda mark: type(mark).__name__)
def test_every_mark_is_well_formed(mark):
    assert len(parsed(mark)) in (1, 2)


def test_a_band_goes_there_above_and_back_below():
    (polygon,) = parsed(MARKS[0])
    assert polygon.get("points") == "0,2 1,3 1,0 0,0"


def test_texts_are_escaped():
    assert parsed(*INSIDE)[0].text == "<b>" and "<b>" not in to_svg(Figure(1, 1, "", INSIDE))
    (title,) = parsed(MARKS[2])[0]
    assert title.text == '5 < "6"'
    assert parsed(title='"quoted" <').get("aria-label") == '"quoted" <'


def test_what_is_rested_on_hides_until_then():
    spots, at_rest = parsed(MARKS[4])
    (spot,) = spots
    assert spot[1].get("visibility") == "hidden" and at_rest.get("class") == "jaxremat-rest"


def test_tones_are_of_the_palette_or_of_the_page():
    assert parsed(Polyline(((0, 0), (1, 1)), "muted"))[0].get("stroke") == "currentColor"
    assert parsed(Polyline(((0, 0), (1, 1)), "saved"))[0].get("stroke") == COLOURS["saved"]


def test_colours_differ_in_luminance_or_hue():
    """So far apart that no two of them look alike: a tenth of the way from black to white in some channel at least."""
    channels = {name: [int(colour[i : i + 2], 16) for i in (1, 3, 5)] for name, colour in COLOURS.items()}
    for one, other in itertools.combinations(channels.values(), 2):
        assert max(abs(a - b) for a, b in zip(one, other)) > 0.1 * 255
