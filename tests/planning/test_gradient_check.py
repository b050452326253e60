"""The planned gradient against the plain one."""

import jax
import jax.numpy as jnp
import pytest
import show_programs

import jaxremat
from jaxremat.planner.decision import Decision


@pytest.mark.parametrize("layers, scan, budget", [(4, False, 0.6), (6, True, 0.7), (2, False, 1.0)])
def test_plans_agree(layers, scan, budget):
    loss, args = show_programs.tower(layers=layers, scan=scan)
    plan = jaxremat.plan(loss, *args, budget=budget, verify="replay")
    check = plan.check_grads(*show_programs.random_like(args))
    assert check.largest_difference <= check.rtol < 1e-3
    assert "agree" in str(check)


def test_a_wrong_gradient_is_refused_by_name(plan, monkeypatch):
    _, args = show_programs.tower()
    emitted = Decision.emitted

    def wrong(decision, primal):
        run = emitted(decision, primal)
        return lambda *inputs: run(inputs[0] * 1.5, *inputs[1:])

    monkeypatch.setattr(Decision, "emitted", wrong)
    with pytest.raises(jaxremat.GradientError, match=r"differs by .* relative"):
        plan.check_grads(*show_programs.random_like(args))


def normalized(w, x):
    return jnp.sum(jax.nn.softmax(x @ w) / jnp.linalg.norm(x, axis=-1, keepdims=True))


def summed(w, x):
    return jnp.sum(jax.lax.scan(lambda c, row: (c + jnp.log(-jnp.abs(row @ w)), None), jnp.zeros(8), x)[0])


def measured(w, x):
    return jnp.mean(jnp.tanh(x @ w)), jnp.sqrt(-1.0 - jnp.abs(x @ w))


def refuse(loss, told):
    args = jnp.ones((8, 8)), jnp.ones((4, 8))
    plan = jaxremat.plan(loss, *args, budget=1.0, verify="replay")
    with pytest.raises(jaxremat.GradientError, match=told):
        plan.check_grads(*args)


NOT_A_NUMBER = {
    "a result": (lambda w, x: jnp.sum(jnp.log(-1.0 - jnp.abs(x @ w))), "result 0 holds 1 NaN"),
    "a gradient alone": (lambda w, x: jnp.sum(jnp.sqrt(jnp.zeros(8) * (x @ w))), "gradient of 0 .* holds 64 NaN"),
    "in a loop": (summed, "result 0"),
    "of zeros": (lambda w, x: normalized(w, 0 * x), "NaN"),
    "of half precision": (lambda w, x: jnp.sum(jnp.exp(1e4 * x.astype(jnp.bfloat16) @ w) * 0), "NaN"),
}


@pytest.mark.parametrize(("loss", "told"), NOT_A_NUMBER.values(), ids=NOT_A_NUMBER)
def test_what_is_no_number_is_refused_by_name(loss, told):
    refuse(loss, told)


INFINITE = {
    "a result": (lambda w, x: jnp.exp(1e4 * jnp.abs(x @ w)).sum(), "result 0 is infinite"),
    "a gradient alone": (lambda w, x: jnp.sum(jnp.sqrt(w - 1) * jnp.abs(x).mean()), "gradient of 0 .* is infinite"),
    "of half precision": (lambda w, x: jnp.sum((300 * x.astype(jnp.float16) @ w.astype(jnp.float16)) ** 2), "infinite"),
}


@pytest.mark.parametrize(("loss", "told"), INFINITE.values(), ids=INFINITE)
def test_what_is_infinite_throughout_is_refused_by_name(loss, told):
    refuse(loss, told)


def test_some_entries_may_be_infinite():
    args = jnp.ones((8, 8)), jnp.ones((4, 8))
    masked = jnp.where(jnp.tri(4, 8) > 0, 0.0, -jnp.inf)
    plan = jaxremat.plan(lambda w, x: x @ w + masked, *args, budget=1.0, verify="replay")
    assert plan.check_grads(*args).largest_difference == 0


def test_auxiliary_results_may_be_anything():
    args = jnp.ones((8, 8)), jnp.ones((4, 8))
    plan = jaxremat.plan(measured, *args, budget=1.0, has_aux=True, verify="replay")
    assert plan.check_grads(*args).largest_difference == 0


def test_other_shapes_are_refused(plan):
    _, args = show_programs.tower(batch=3)
    with pytest.raises(jaxremat.PlanMismatchError):
        plan.check_grads(*show_programs.random_like(args))
