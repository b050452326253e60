"""Why a value is saved or not."""

import re

import pytest
import show_programs

import jaxremat


def test_both_answers_carry_bytes_and_time(plan):
    text = plan.explain("block_0")
    assert text.splitlines()[0].startswith("block_0: save")
    assert re.search(r"^save .*block_0.* holds \d+\.\d [KMG]iB; recomputing it instead would cost .*%", text, re.M)
    assert re.search(r"^recompute .*block_0.* saving it would hold .*; recomputing it costs ", text, re.M)
    assert re.search(r"^the plan recomputes what costs up to .* per GiB", text, re.M)


def test_patterns_match_names_and_lines_and_primitives(plan):
    assert '"projection"' in plan.explain("projection")
    assert "show_programs.py" in plan.explain("show_programs.py")
    assert "LayerNorm" in plan.explain("rsqrt")
    assert plan.explain().startswith("all values: save")


def test_alike_values_share_a_sentence(unnamed_plan):
    lines = unnamed_plan.explain("dot_general").splitlines()
    assert len(lines) == len(set(lines)) <= 5
    assert re.search(r"dot_general float32\[512,32\] × \d", "\n".join(lines))
    _, args = show_programs.unnamed()
    assert unnamed_plan.check_grads(*show_programs.random_like(args)).largest_difference <= 1e-5


def test_unknown_pattern_lists_paths(plan):
    with pytest.raises(jaxremat.ArgumentError, match=r"no value matches 'attention'.*Tower/block_0"):
        plan.explain("attention")


def test_the_turning_budget_is_one(plan):
    """At the budget that is named, the value changes its mind."""
    last = plan.explain("block_0", when=True).splitlines()[-1]
    change = re.search(r"(save|recompute) instead from a budget of about (\d+\.\d) (KiB|MiB)", last)
    if change is None:
        assert "at every budget" in last
        return
    near = float(change[2]) * {"KiB": 2**10, "MiB": 2**20}[change[3]]
    assert (near > plan.peak_bytes) == (change[1] == "save")


def test_loops_and_plain_plans_explain_themselves(loop_plan, plain_plan):
    assert "save" in loop_plan.explain("up", when=True)
    assert "recompute" not in plain_plan.explain("block_1")
