"""Who interrupts planning gets the best of what was compiled by then."""

import jax
import jax.numpy as jnp
import pytest

import jaxremat
from jaxremat.planning.compiled_search import CompiledSearch
from jaxremat.planning.least_search import LeastSearch
from jaxremat.planning.planning import Planning
from jaxremat.step.planning import StepPlanning

SHAPES = [jax.ShapeDtypeStruct((64, 64), jnp.float32)] * 6, jax.ShapeDtypeStruct((32768, 64), jnp.float32)


def loss(weights, x):
    for w in weights:
        x = x + jnp.tanh(x @ w)
    return jnp.mean(x**2)


def step(weights, x):
    return jax.tree.map(lambda w, g: w - 0.1 * g, weights, jax.grad(loss)(weights, x))


def plan(budget):
    return jaxremat.plan(loss, *SHAPES, budget=budget)


def plan_of_step(budget):
    return jaxremat.jit(step, budget=budget).plan(*SHAPES)


def interrupt_after(monkeypatch, owner, method):
    """Lets a method do its work and then interrupts, the first time."""
    original = getattr(owner, method)

    def interrupted(*args):
        monkeypatch.setattr(owner, method, original)
        original(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(owner, method, interrupted)


@pytest.mark.parametrize(
    ("make", "owner", "search"), [(plan, CompiledSearch, "fitting"), (plan_of_step, StepPlanning, "_corrected")]
)
def test_what_was_compiled_and_fits_is_in_the_error(monkeypatch, make, owner, search):
    interrupt_after(monkeypatch, owner, search)
    with pytest.raises(KeyboardInterrupt, match=r"\.plan") as stopped:
        make(0.55)
    best = stopped.value.plan
    assert best.compiled.peak_bytes <= best.budget_bytes < best.baseline_peak_bytes
    assert best.recomputed


@pytest.mark.parametrize(
    ("make", "owner", "search"), [(plan, LeastSearch, "compiled"), (plan_of_step, StepPlanning, "_compiled_least")]
)
def test_the_smallest_is_in_the_error_where_the_least_is_wanted(monkeypatch, make, owner, search):
    interrupt_after(monkeypatch, owner, search)
    with pytest.raises(jaxremat.PlanningInterrupted) as stopped:
        make("least")
    best = stopped.value.plan
    assert best.compiled.peak_bytes == best.budget_bytes < best.baseline_peak_bytes


@pytest.mark.parametrize(("make", "owner"), [(plan, Planning), (plan_of_step, StepPlanning)])
def test_there_is_none_before_anything_that_fits_was_compiled(monkeypatch, make, owner):
    interrupt_after(monkeypatch, owner, "_limit")
    with pytest.raises(jaxremat.PlanningInterrupted, match="no plan") as stopped:
        make(0.46)
    assert stopped.value.plan is None
