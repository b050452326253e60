"""Rotor's steps: what each needs, and the operations of a sequence of them."""

import numpy as np
import pytest
from chain_oracles import chains, unit_chain
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxremat.solvers.rotor_steps import ChainSizes, RotorDecision, unfolded


def test_saving_everything_runs_forward_and_then_back():
    operations = unfolded(lambda start, end, left: RotorDecision(True, start + 1, left), 3, 10)
    assert operations == (*(("forward_all", k) for k in (1, 2, 3)), *(("backward", k) for k in (3, 2, 1)))


def test_what_lies_behind_a_split_is_done_before_what_lies_before_it():
    """Stages 1 and 2 run forward only, stage 3 saves; then the first two are planned by themselves."""
    asked = []

    def decide(start, end, left):
        asked.append((start, end, left))
        return RotorDecision(False, 2, left - 4) if end - start == 2 else RotorDecision(True, start + 1, left - 1)

    kinds = [f"{kind} {stage}" for kind, stage in unfolded(decide, 3, 10)]
    assert kinds == [
        *("forward_checkpoint 1", "forward_none 2", "forward_all 3", "backward 3"),
        *("forward_all 1", "forward_all 2", "backward 2", "backward 1"),
    ]
    assert asked == [(0, 2, 10), (2, 2, 6), (0, 1, 10), (1, 1, 9)]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(chains(most_stages=5), st.integers(1, 4))
def test_steps_need_what_they_hold_rounded_up(chain, quantum):
    sizes, q = ChainSizes(chain, quantum), lambda size: -(-int(size) // quantum)
    a, d = [*map(q, chain.output_bytes)], [q(chain.input_bytes), *map(q, chain.gradient_bytes)]
    extra = [*map(q, chain.forward_overhead_bytes)]
    for start in range(chain.num_stages):
        for end in range(start + 1, chain.num_stages):
            each = [a[start] + extra[start], *(a[k - 1] + a[k] + extra[k] for k in range(start + 1, end))]
            assert sizes.forward_step_q(start, end).tolist() == np.maximum.accumulate(each).tolist()
        saved, back = q(chain.saved_bytes[start]), q(chain.backward_overhead_bytes[start])
        needs = max(d[start + 1] + saved + extra[start], d[start + 1] + d[start] + saved + back)
        assert sizes.saving_step_q(start, start) == needs


@pytest.mark.parametrize("quantum", [1, 3])
def test_stages_without_overhead_need_their_input_and_output(quantum):
    sizes = ChainSizes(unit_chain(4, output_bytes=np.full(4, 6), saved_bytes=np.full(4, 6)), quantum)
    assert sizes.forward_step_q(0, 3).tolist() == [6 // quantum, 12 // quantum, 12 // quantum]
