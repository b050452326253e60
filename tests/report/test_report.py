"""What a report warns of, and that its parts agree."""

import dataclasses

import pytest

from jaxremat.compiled.compile import MemoryReport
from jaxremat.loops.decision import Piece
from jaxremat.report.report import COLUMNS, Numbers, _piece, _warnings

MIB = 2**20
NUMBERS = Numbers(100 * MIB, 90 * MIB, 200 * MIB, 0.1, None, 0, 0.0, "auto", "cpu", "schedule")


def compiled(size):
    return MemoryReport("cpu", 0, 0, size, 0, size, 0.0)


def warned(written_bytes=200 * MIB, **changes):
    return " | ".join(_warnings(dataclasses.replace(NUMBERS, **changes), written_bytes))


def test_nothing_compiled_is_a_warning():
    assert "nothing was compiled" in warned()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"compiled": compiled(95 * MIB)}, ""),
        ({"compiled": compiled(110 * MIB)}, "takes 10.0 MiB more than the budget"),
        ({"compiled": compiled(60 * MIB)}, "the prediction is off by +50%"),
        ({"compiled": compiled(60 * MIB), "form": "plain"}, ""),
        ({"compiled": compiled(95 * MIB), "written_bytes": 300 * MIB}, "as written, the program takes 200.0 MiB"),
    ],
)
def test_what_is_far_off_is_told(changes, told):
    found = warned(**changes)
    assert told in found and bool(found) == bool(told)


def test_summaries_are_plain_and_hold_what_was_compiled():
    summary = dataclasses.replace(NUMBERS, compiled=compiled(95 * MIB)).summary()
    assert summary["compiled_peak_bytes"] == 95 * MIB and summary["form"] == "schedule" and summary["warnings"] == []
    assert "compiled" not in summary


def test_courses_have_a_moment_for_every_part_of_the_longer_time(any_plan):
    report = any_plan.report
    for course in (report.written, report.planned):
        assert len(course.moments) == COLUMNS
        shown = [moment for moment in course.moments if moment is not None]
        assert max(shown, key=lambda moment: moment.total_bytes).total_bytes == course.peak.total_bytes
    assert report.seconds == max(report.written.live.seconds, report.planned.live.seconds)


ONE_BY_ONE, AGAIN, NESTED = Piece(5, (0, 1), (2, 3)), Piece(5, (0, 1), (1, 2)), Piece(3, inside=(Piece(2),))


@pytest.mark.parametrize(("piece", "told"), [(ONE_BY_ONE, (5, 0, 0)), (AGAIN, (5, 0, 1)), (NESTED, (6, 3, 0))])
def test_pieces_say_how_many_equations_run_again(piece, told):
    assert _piece(piece) == told
