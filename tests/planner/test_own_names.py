"""Which of the author's names are saved in the author's checkpoints."""

import itertools

import jax
import jax.numpy as jnp
import pytest
from jax.ad_checkpoint import checkpoint_name

from jaxremat.backends.devices import resolve_target
from jaxremat.planner import own_names
from jaxremat.planner.own_names import OwnNamesPlanner
from jaxremat.trace.origins import names_in
from jaxremat.trace.primal import read_primal

ARGS = (
    [(jax.ShapeDtypeStruct((32, 128), jnp.float32), jax.ShapeDtypeStruct((128, 32), jnp.float32))] * 4,
    (jax.ShapeDtypeStruct((512, 32), jnp.float32)),
)


def authored(ws, x):
    """Blocks of a wide and a narrow product, each named."""

    def block(up, down, x):
        wide = checkpoint_name(x @ up, "wide")
        return x + jnp.sin(checkpoint_name(jnp.sin(wide) @ down, "narrow"))

    for up, down in ws:
        x = jax.checkpoint(block)(up, down, x)
    return jnp.mean(x**2)


def planner():
    primal = read_primal(authored, ARGS, 0, False)
    return OwnNamesPlanner(primal, resolve_target("cpu"), tuple(names_in(primal.raw)))


@pytest.fixture(scope="module")
def found():
    return planner()


def test_every_choice_of_few_names_is_an_outcome(found):
    chosen = {each.form.names for each in found.outcomes}
    subsets = itertools.chain.from_iterable(itertools.combinations(("wide", "narrow"), k) for k in range(3))
    assert {frozenset(names) for names in chosen} == {frozenset(names) for names in subsets}


def test_more_names_hold_more_bytes_and_take_less_time(found):
    by_names = {frozenset(each.form.names): each for each in found.outcomes}
    nothing, everything = by_names[frozenset()], by_names[frozenset({"wide", "narrow"})]
    assert nothing.replayed_bytes < everything.replayed_bytes and nothing.cost > everything.cost
    assert found.least() == [found.fit(0)] and found.fit(0).replayed_bytes == nothing.replayed_bytes


def test_names_are_added_by_what_they_spare_per_byte(monkeypatch, found):
    """With more names than are tried in full: the narrow product spares as much time in a quarter of the bytes."""
    monkeypatch.setattr(own_names, "_MOST_NAMES_IN_FULL", 1)
    orders = [each.form.names for each in planner().outcomes]
    assert orders[0] == () and ("narrow",) in orders and len(orders) <= 1 + 2 + 1
    assert frozenset({"wide", "narrow"}) in {frozenset(names) for names in orders}


def test_the_baseline_has_no_checkpoints(found):
    assert found.plain.form.names is None and found.plain.cost < min(each.cost for each in found.outcomes)
