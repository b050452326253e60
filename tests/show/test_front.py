"""Curves of plans as text, table and figure."""

import pytest

from jaxremat.show.figure import Dot, Label, Polyline
from jaxremat.show.front import FrontView, PointView, front_figure, front_to_html, front_to_text

MIB = 2**20
POINTS = tuple(PointView(f"at {share}", share * MIB, over) for share, over in ((80, 0.01), (50, 0.1), (30, 0.4)))
HAND = PointView("none", 100 * MIB, 0.0, None, "as written"), PointView("full", 35 * MIB, 0.33, None, "all again")
VIEW = FrontView(POINTS, HAND, 100 * MIB, "cpu", (80 * MIB, 50 * MIB, 20 * MIB), (20 * MIB,), 28 * MIB)


def test_plans_and_choices_by_hand_are_one_table():
    lines = front_to_text(VIEW, 120).splitlines()
    assert any("plan at 50" in line and "50%" in line and "10.0%" in line for line in lines)
    assert any("by hand: full" in line and "35%" in line for line in lines)
    assert lines[-3].startswith("nothing was found within 20.0 MiB; the least peak that was reached is 28.0 MiB")
    assert lines[-1] == "by hand, full: all again"


def test_narrow_terminals_get_fewer_columns():
    wide, narrow = front_to_text(VIEW, 120), front_to_text(VIEW, 60)
    assert "predicted" in wide and "predicted" not in narrow
    assert max(map(len, narrow.splitlines())) <= 60


def test_a_figure_joins_plans_and_leaves_choices_by_hand_hollow():
    marks = front_figure(VIEW).marks
    dots = [mark for mark in marks if isinstance(mark, Dot)]
    assert [dot.hollow for dot in dots] == [False] * 3 + [True] * 2
    (line,) = (mark for mark in marks if isinstance(mark, Polyline) and mark.tone == "saved")
    assert list(line.points) == [(dot.x, dot.y) for dot in dots[:3]]
    assert [x for x, _ in line.points] == sorted((x for x, _ in line.points), reverse=True)
    assert [y for _, y in line.points] == sorted((y for _, y in line.points), reverse=True), "more time is further up"


def test_choices_that_coincide_share_a_label():
    same = FrontView(POINTS, (*HAND, PointView("dots", 35 * MIB, 0.33)), *list(vars(VIEW).values())[2:])
    labels = [mark.text for mark in front_figure(same).marks if isinstance(mark, Label)]
    assert "full, dots" in labels


@pytest.mark.parametrize("text", ["plan at 30", "as written", "<svg"])
def test_pages_hold_the_table_the_notes_and_the_curve(text):
    assert text in front_to_html(VIEW)
