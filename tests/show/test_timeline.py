"""The figures of live bytes: what is drawn is what the report holds."""

import itertools

import numpy as np
import pytest

from jaxremat.report.live import KINDS
from jaxremat.report.report import COLUMNS
from jaxremat.show.figure import COLOURS, Area, Dot, Label, Polyline, Spots
from jaxremat.show.timeline import panels, still


def marks_of(figure, kind):
    return [mark for mark in figure.marks if isinstance(mark, kind)]


def test_bands_stack_up_to_the_live_bytes(any_plan):
    for figure, course in zip(panels(any_plan.report), (any_plan.report.written, any_plan.report.planned)):
        areas = marks_of(figure, Area)
        assert [area.colour for area in areas] == [COLOURS[kind] for kind in KINDS]
        for below, above in itertools.pairwise(areas):
            assert list(above.low) == list(below.high)
        total = course.live.sampled(COLUMNS, any_plan.report.seconds).sum(0)
        heights = np.asarray(areas[0].low)[::2] - np.asarray(areas[-1].high)[::2]
        np.testing.assert_allclose(heights / heights.max(), total / total.max(), atol=1e-9)


def test_both_panels_share_one_scale_of_bytes(plan):
    (dot,), (other,) = (marks_of(figure, Dot) for figure in panels(plan.report))
    assert dot.y < other.y, "the program as written peaks higher up"
    lines = [marks_of(figure, Polyline) for figure in panels(plan.report)]
    budgets = [[line.points for line in each if line.tone == "budget"] for each in lines]
    assert budgets[0] == budgets[1]


def test_every_column_can_be_rested_on_once(plan):
    for figure, course in zip(panels(plan.report), (plan.report.written, plan.report.planned)):
        (spots,) = marks_of(figure, Spots)
        told = [moment for moment in course.moments if moment is not None]
        assert len(spots.spots) == len({id(moment) for moment in told})
        edges = [(spot.x, spot.x + spot.width) for spot in spots.spots]
        assert all(a[1] == pytest.approx(b[0]) for a, b in itertools.pairwise(edges))
        assert any("at the peak" in mark.text for mark in spots.at_rest if isinstance(mark, Label))


def test_a_still_figure_holds_both_panels_and_a_legend(plan):
    figure = still(plan.report)
    assert figure.width == 2 * panels(plan.report)[0].width
    assert not marks_of(figure, Spots) and len(figure.marks) == 2 + len(KINDS)
