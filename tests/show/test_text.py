"""What a plan says in a terminal."""

import re

import numpy as np
import pytest
import show_programs

import jaxremat
from jaxremat.base.budget import format_bytes
from jaxremat.show.bands import KINDS, bands_of
from jaxremat.show.paths import clean_path


def test_headline_and_size(any_plan):
    text = str(any_plan)
    for word in ("budget", "predicted", "compiled", "extra time", "solved in", "as written", "planned"):
        assert word in text
    assert len(text.splitlines()) <= 80
    assert max(map(len, text.splitlines())) <= 170


def test_numbers_are_those_of_the_plan(plan):
    text = str(plan)
    assert format_bytes(plan.budget_bytes) in text
    assert format_bytes(plan.peak_bytes) in text
    assert f"{plan.overhead:.1%}" in text


def test_layers_are_folded_and_name_the_authors_lines(plan):
    text = str(plan)
    assert re.search(r"Tower/block_0…\d/up .*× \d", text)
    assert '"projection"' in text
    assert "show_programs.py:" in text
    assert "LayerNorm" in text


def test_every_value_is_told_once(plan):
    told = plan.saved + plan.recomputed
    assert all(value.saved for value in plan.saved)
    assert not any(value.saved for value in plan.recomputed)
    assert len(told) == len(plan._values)
    assert {value.path for value in told} >= {f"Tower/block_{i}/up" for i in range(6)}
    total = sum(map(int, re.findall(r"× (\d+)", str(plan))))
    left_out = int(re.search(r"and (\d+) smaller", str(plan))[1]) if "smaller values" in str(plan) else 0
    assert 0 < total + left_out <= len(told)


def test_a_smaller_budget_saves_less(plan, plain_plan):
    assert plain_plan.recomputed == ()
    loss, args = show_programs.tower()
    tighter = jaxremat.plan(loss, *args, budget=0.45, verify="replay")
    saved = lambda p: sum(value.size_bytes for value in p.saved)
    assert saved(tighter) < saved(plan)


def test_loops_are_told_by_iteration(loop_plan):
    text = str(loop_plan)
    assert re.search(r"loop over 8 iterations", text)
    assert any(value.copies > 1 for value in loop_plan.saved + loop_plan.recomputed)


def test_kinds_add_up_to_the_live_bytes(any_plan):
    bands = bands_of(any_plan.problem.graph, any_plan.timeline)
    np.testing.assert_array_equal(bands.total_bytes, any_plan.timeline.live_bytes)
    assert bands.live_bytes.min() >= 0
    assert bands.peak_bytes == any_plan.peak_bytes
    assert np.all(np.diff(bands.end_seconds) >= 0)


def test_only_plans_that_recompute_have_recomputed_bytes(plan, plain_plan):
    recomputed = KINDS.index("recomputed")
    assert bands_of(plain_plan.problem.graph, plain_plan.timeline).live_bytes[recomputed].max() == 0
    assert bands_of(plan.problem.graph, plan.timeline).live_bytes[recomputed].max() > 0


@pytest.mark.parametrize("columns", [1, 7, 60, 5000])
def test_samples_hold_the_peak(plan, columns):
    bands = bands_of(plan.problem.graph, plan.timeline)
    sampled = bands.sampled(columns, 1.3 * bands.seconds)
    assert sampled.sum(0).max() == bands.peak_bytes
    assert sampled.shape == (len(KINDS), columns)


@pytest.mark.parametrize(
    "stack, path",
    [
        ("transpose(jvp(GPT))/block_3/query", "GPT/block_3/query"),
        ("jvp(GPT)/checkpoint/block_3", "GPT/block_3"),
        ("vmap(jit(f))/A_0", "f/A_0"),
        ("", ""),
        ("GPT/Block_0.<lambda>/Block_0", "GPT/Block_0"),
    ],
)
def test_transformations_leave_paths(stack, path):
    assert clean_path(stack) == path
