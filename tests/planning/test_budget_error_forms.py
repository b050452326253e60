"""A form that cannot keep a budget says what a schedule would reach."""

import re

import jax
import jax.numpy as jnp
import pytest
from jax.ad_checkpoint import checkpoint_name

import jaxremat

ARGS = [jax.ShapeDtypeStruct((32, 32), jnp.float32)] * 8, jax.ShapeDtypeStruct((512, 32), jnp.float32)


def loss(ws, x):
    for w in ws:
        x = jnp.tanh(x @ w)
    return jnp.sum(x**2)


def named(ws, x):
    """The author's checkpoints leave everything between them alive."""
    for w in ws:
        x = jax.checkpoint(lambda w, x: jnp.tanh(checkpoint_name(x @ w, "product")))(w, x)
    return jnp.sum(x**2)


@pytest.mark.parametrize(
    ("fun", "emit", "verify"),
    [(loss, "segments", "replay"), (loss, "names", "replay"), (named, "names", "replay"), (named, "names", "compile")],
)
def test_a_refusal_names_the_form_that_fits(fun, emit, verify):
    with pytest.raises(jaxremat.BudgetError) as floor:
        jaxremat.plan(fun, *ARGS, budget=1000, verify="replay")
    budget = int(1.1 * floor.value.min_peak_bytes)
    assert jaxremat.plan(fun, *ARGS, budget=budget).compiled.peak_bytes <= budget
    with pytest.raises(jaxremat.BudgetError) as refused:
        jaxremat.plan(fun, *ARGS, budget=budget, emit=emit, verify=verify)
    assert re.search(
        r'emit="schedule": it (fits|reaches lower), with a predicted peak of [\d.]+ KiB', str(refused.value)
    )


def scanned(ws, x):
    return jnp.sum(jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, jnp.stack(ws))[0] ** 2)


def in_scopes(ws, x):
    for i, w in enumerate(ws):
        with jax.named_scope(f"block_{i}"):
            x = jnp.tanh(x @ w)
    return jnp.sum(x**2)


@pytest.mark.parametrize("emit", ["names", "segments"])
@pytest.mark.parametrize("fun", [loss, named, scanned, in_scopes], ids=lambda fun: fun.__name__)
def test_no_mark_of_ours_is_shown(fun, emit):
    plan = jaxremat.plan(fun, *ARGS, budget="least", emit=emit, verify="replay")
    with pytest.raises(jaxremat.BudgetError) as refused:
        jaxremat.plan(fun, *ARGS, budget=1000, emit=emit, verify="replay")
    occupants = [f"{occupant.path} {occupant.name}" for occupant in refused.value.occupants]
    for shown in (str(plan), str(plan.explain()), str(refused.value), *occupants):
        assert not re.search(r"@[\d*]|\"\d+\.\d+\"|\bname ×", shown)
    assert not re.search(r"@[\d*]", plan._repr_html_())
    assert all(occupant.bytes > 0 for occupant in refused.value.occupants)


def test_a_schedule_that_is_refused_names_no_form():
    with pytest.raises(jaxremat.BudgetError) as refused:
        jaxremat.plan(loss, *ARGS, budget=1000, verify="replay")
    assert "emit=" not in str(refused.value)
