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


def test_a_schedule_that_is_refused_names_no_form():
    with pytest.raises(jaxremat.BudgetError) as refused:
        jaxremat.plan(loss, *ARGS, budget=1000, verify="replay")
    assert "emit=" not in str(refused.value)
