"""What a plan says in a terminal."""

import io
import re

import pytest

from jaxremat.base.budget import format_bytes
from jaxremat.show.text import to_text
from jaxremat.show.units import format_sum


@pytest.mark.parametrize("columns", [72, 80, 100, 120, 200])
def test_it_fits_the_terminal(any_plan, columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = str(any_plan).splitlines()
    assert len(lines) <= 80
    assert max(map(len, lines)) <= columns


def test_columns_go_in_a_stated_order(plan):
    wide, middling, narrow = (to_text(plan.report, width) for width in (200, 120, 80))
    assert "source" in wide
    assert "show_programs.py:" in wide
    assert "shape" in middling or "per GiB" in middling
    assert "source" not in narrow
    assert "would cost" in narrow


def test_the_headline_names_its_numbers(any_plan):
    text = str(any_plan)
    for word in ("budget", "predicted", "compiled", "extra time", "solved in", "as written", "planned", "at the peak"):
        assert word in text


def test_numbers_are_those_of_the_plan(plan):
    text = str(plan)
    assert format_bytes(plan.budget_bytes) in text
    assert format_bytes(plan.peak_bytes) in text
    assert f"{plan.overhead:.1%}" in text


def test_layers_are_folded(plan):
    text = to_text(plan.report, 120)
    assert re.search(r"Tower/block_0…\d/up .*× \d", text)
    assert '"projection"' in text
    assert "LayerNorm" in text


def test_a_dozen_rows_then_totals(any_plan):
    text = to_text(any_plan.report, 100)
    assert len(re.findall(r"^(?:save|recompute|defer) ", text, re.M)) <= 12
    assert re.search(r"saved: \d+ values?, \d", text)


def test_loops_are_told_by_iteration(loop_plan):
    text = str(loop_plan)
    assert "loop over 8 iterations" in text
    assert "iterations" in text


def test_rich_shows_plans(plan):
    console = pytest.importorskip("rich.console").Console(width=300, record=True, file=io.StringIO())
    console.print(plan)
    assert console.export_text().split() == str(plan).split()


@pytest.mark.filterwarnings("ignore:The chararray class:DeprecationWarning")  # treescope looks at all of NumPy
def test_treescope_shows_plans(plan):
    treescope = pytest.importorskip("treescope")
    assert treescope.render_to_text(plan).startswith(repr(plan))
    assert "jr-facts" in treescope.render_to_html(plan, compressed=False)


def test_sums_are_in_one_unit():
    assert format_sum([("parameters", 3 << 30), ("saved", 1 << 30), ("small", 1)]) == (
        "parameters 3.0 + saved 1.0 = 4.0 GiB"
    )
    assert format_sum([("a", 3), ("b", 4)]) == "a 3 + b 4 = 7 B"
