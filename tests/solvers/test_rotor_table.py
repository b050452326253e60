"""The table of Rotor's recurrence against the recurrence itself, memoised and slow."""

import functools
import math

import numpy as np
import pytest
from chain_oracles import chains, unit_chain
from hypothesis import given, settings

from jaxremat.graph.replay import replay_operations
from jaxremat.solvers import rotor_table
from jaxremat.solvers.rotor_table import RotorTable


def least_seconds(chain, memory):
    """C(1, L, m) as it is written, stages from 0, sizes in bytes."""
    a = [int(size) for size in chain.output_bytes]
    d = [chain.input_bytes, *map(int, chain.gradient_bytes)]
    saved, before = chain.saved_bytes.tolist(), [0, *a]
    forward, backward = chain.forward_seconds.tolist(), chain.backward_seconds.tolist()
    extra, extra_back = chain.forward_overhead_bytes.tolist(), chain.backward_overhead_bytes.tolist()

    @functools.cache
    def least(s, t, m):
        if m < 0:
            return math.inf
        saves = max(d[t + 1] + saved[s] + extra[s], d[s + 1] + d[s] + saved[s] + extra_back[s])
        best = math.inf
        if m >= saves:
            best = forward[s] + backward[s] + (0.0 if s == t else least(s + 1, t, m - saved[s]))
        for j in range(s + 1, t + 1):
            needs = max([a[s] + extra[s], *(before[k] + a[k] + extra[k] for k in range(s + 1, j))])
            if m >= d[t + 1] + needs:
                best = min(best, sum(forward[s:j]) + least(j, t, m - a[j - 1]) + least(s, j - 1, m))
        return best

    return least(0, chain.num_stages - 1, memory)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(chains(most_stages=5))
def test_every_entry_is_what_the_recurrence_says(chain):
    table = RotorTable(chain, 1, 40)
    assert [table.seconds(slot) for slot in range(41)] == [least_seconds(chain, slot) for slot in range(41)]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(chains(most_stages=5))
def test_operations_take_the_time_of_their_entry(chain):
    table = RotorTable(chain, 1, 60)
    for slot in table.distinct_slots():
        peak_bytes, seconds = replay_operations(chain, table.operations(slot))
        assert seconds == table.seconds(slot) and peak_bytes <= slot + chain.input_bytes


def test_slots_that_differ_are_listed_from_the_fastest():
    table = RotorTable(unit_chain(8), 1, 40)
    slots = table.distinct_slots()
    seconds = [table.seconds(slot) for slot in slots]
    assert slots == sorted(slots, reverse=True) and seconds == sorted(set(seconds))
    assert all(table.seconds(slot - 1) > table.seconds(slot) for slot in slots if slot)


def test_coarse_quanta_never_promise_too_much():
    chain = unit_chain(6, output_bytes=np.arange(3, 9), saved_bytes=np.arange(3, 9), gradient_bytes=np.arange(3, 9))
    fine, coarse = RotorTable(chain, 1, 60), RotorTable(chain, 4, 15)
    assert all(coarse.seconds(slot) >= fine.seconds(4 * slot) for slot in range(16))


def test_large_tables_are_kept_in_single_precision(monkeypatch):
    monkeypatch.setattr(rotor_table, "_LARGE_TABLE", 100)
    small, large = RotorTable(unit_chain(2), 1, 10), RotorTable(unit_chain(6), 1, 40)
    assert small.is_exact and not large.is_exact
    assert large.seconds(40) == pytest.approx(12.0)
