"""Values that are alike as one row, with what they cost."""

import dataclasses

import pytest
import show_programs

import jaxremat
from jaxremat.report.rows import common_path


def test_rows_and_what_they_leave_out_are_all_values(any_plan):
    table = any_plan.report.table
    number, size = table.left_out
    assert sum(row.count for row in table.rows) + number == sum(total.count for total in table.totals)
    assert sum(row.total_bytes for row in table.rows) + size == sum(total.total_bytes for total in table.totals)
    assert sum(total.total_bytes for total in table.totals) == sum(v.total_bytes for v in any_plan._values)


def test_layers_are_folded_into_rows_of_one_path(plan):
    rows = plan.report.table.rows
    assert "Tower/block_0…5/up" in {row.path for row in rows}
    assert len({(row.path, row.what, row.action) for row in rows}) == len(rows)


def test_costs_are_paid_or_spared(plan):
    for row in plan.report.table.rows:
        assert (row.costs_seconds is None) == (row.action != "recompute")
        assert (row.would_cost_seconds is None) == (row.action != "save")
        assert row.seconds >= 0
    assert any(row.costs_seconds for row in plan.report.table.rows)


def test_the_largest_rows_leave_the_rest_to_the_rest(plan):
    table = plan.report.table
    few = table.largest(2)
    assert len(few.rows) == 2
    rest = [row for row in table.rows if row not in few.rows and row.action != "defer"]
    assert min(row.total_bytes for row in few.rows) >= max(row.total_bytes for row in rest)
    assert sum(row.count for row in few.rows) + few.left_out[0] == sum(total.count for total in table.totals)


def test_rows_of_loops_say_which_iterations():
    loss, args = show_programs.tower(layers=8, scan=True)
    plan = jaxremat.plan(loss, *args, budget=0.6, verify="replay")
    told = {row.iterations for row in plan.report.table.rows if row.iterations}
    assert told
    assert all("of 8" in text or "all 8" in text or "segments" in text for text in told)


@pytest.mark.parametrize(
    "paths, common",
    [
        (["A/b_0", "A/b_1", "A/b_2"], "A/b_0…2"),
        (["A/b_0", "A/b_2"], "A/b_*"),
        (["A/b_3/c", "A/b_3/c"], "A/b_3/c"),
        ([""], ""),
    ],
)
def test_common_paths(paths, common):
    assert common_path(paths) == common


def test_summaries_are_plain_values(plan):
    summary = plan.summary()
    assert summary["budget_bytes"] == plan.budget_bytes
    assert summary["peak_bytes"] == plan.peak_bytes
    assert all(isinstance(value, int | float | str | list) for value in summary.values())


def test_tables_hold_a_record_per_value(plan):
    table = plan.table()
    records = table if isinstance(table, list) else table.to_dict("records")
    assert len(records) == len(plan._values)
    assert {field.name for field in dataclasses.fields(plan.saved[0])} < set(records[0])
