"""Schedules that keep too much, with as much of it in a byte per number as has to be."""

import jax
import jax.numpy as jnp
import pytest

from jaxremat.backends.devices import resolve_target
from jaxremat.planner.moving import MOST_TRIED
from jaxremat.planner.timed_bytes import TimedBytesPlanner, _until_some_fit
from jaxremat.trace.primal import read_primal

SHAPES = [jax.ShapeDtypeStruct((512, 512), jnp.float32)] * 6, jax.ShapeDtypeStruct((8192, 512), jnp.float32)


def layered(ws, x):
    for w in ws:
        x = x + jnp.tanh(x @ w)
    return jnp.mean(x**2)


@pytest.fixture(scope="module")
def planner():
    return TimedBytesPlanner(read_primal(layered, SHAPES, 0, False), resolve_target("h200"))


@pytest.mark.parametrize("share", [0.8, 0.5])
def test_packing_is_never_slower_than_what_runs_again_for_the_same_bytes(planner, share):
    budget = int(share * planner.plain.peak_bytes)
    ours, own = planner.fit(budget), planner.own.fit(budget)
    assert ours.peak_bytes <= budget
    assert ours.cost <= own.cost or own.peak_bytes > budget


def test_a_program_that_fits_packs_nothing(planner):
    assert planner.fit(planner.plain.peak_bytes).problem is planner.own.fit(planner.plain.peak_bytes).problem


def test_the_least_are_smaller_with_bytes_but_the_first_packs_nothing(planner):
    first, *others = planner.least()
    assert first is planner.own.least()[0]
    assert [each.peak_bytes for each in others] == sorted(each.peak_bytes for each in others)
    assert others[0].peak_bytes <= first.peak_bytes


class Told:
    def __init__(self, peak_bytes):
        self.peak_bytes = peak_bytes


@pytest.mark.parametrize(
    ("peaks", "number"),
    [([9] * 12, 12), ([1] + [9] * 12, MOST_TRIED), ([9] * 6 + [1, 9], 7), ([9, 1], 2)],
    ids=["none fits", "the first", "a later one", "few"],
)
def test_it_is_tried_until_one_of_the_first_few_fits(peaks, number):
    assert len(_until_some_fit(map(Told, peaks), 5)) == number
