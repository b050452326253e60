"""Conditionals that a gradient passes through: two, of which the second may run the first again inside."""

import jax
import jax.numpy as jnp
import pytest
import step_programs
from step_programs import copied, numbers

import jaxremat
from jaxremat.step.decision import ProgramDecision

WIDTH = 64


def _moved(params, grads):
    return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)


def chosen(params, x, flag):
    """Layers in the branches of a conditional."""

    def loss(params):
        h = x
        for i in range(0, 6, 3):
            forward = lambda h, i=i: step_programs._forward(params[i : i + 3], h)
            h = jax.lax.cond(flag > i, forward, lambda h, i=i: h + jnp.sin(h @ params[i]), h)
        return (h**2).mean()

    value, grads = jax.value_and_grad(loss)(params)
    return _moved(params, grads), value


def switched(params, x, flag):
    """One of three branches, which read different amounts of what they made."""

    def gated(params, h):
        for w in params:
            h = h + jax.nn.silu(h @ w) * jnp.sin(h)
        return h

    def loss(params):
        return (jax.lax.switch(flag, [lambda p, h: h, step_programs._forward, gated], params, x) ** 2).mean()

    value, grads = jax.value_and_grad(loss)(params)
    return _moved(params, grads), value


def accumulated(params, x, flag):
    """The same in a scan over micro-batches."""

    def one(total, x):
        def loss(params):
            forward = lambda h: step_programs._forward(params, h)
            return (jax.lax.cond(flag > 0, forward, lambda h: 2 * h, x) ** 2).mean()

        value, grads = jax.value_and_grad(loss)(params)
        return jax.tree.map(jnp.add, total, grads), value

    grads, values = jax.lax.scan(one, jax.tree.map(jnp.zeros_like, params), x.reshape(2, -1, WIDTH))
    return _moved(params, grads), values.mean()


@pytest.mark.parametrize("flag", [0, 1, 2])
@pytest.mark.parametrize("step", [chosen, switched, accumulated])
def test_the_second_conditional_may_run_the_first_again(step, flag):
    args = step_programs._weights(6, WIDTH), step_programs._data(4096, WIDTH), jnp.int32(flag)
    planned = jaxremat.jit(step, budget="least", donate_argnums=0, verify="replay")
    decision = planned.plan(*args).decision
    assert decision.joined or any(inner.joined for _, _, inner in decision.bodies)
    assert ProgramDecision.from_json(decision.to_json()) == decision
    for mine, expected in zip(numbers(planned(*copied(args))), numbers(jax.jit(step)(*args)), strict=True):
        assert mine == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_gradient_of_a_conditional_keeps_to_a_budget_that_it_takes_to_run_inside(tmp_path):
    args = step_programs._weights(6, WIDTH), step_programs._data(4096, WIDTH), jnp.int32(5)
    planned = jaxremat.jit(chosen, budget=0.5, donate_argnums=0)
    plan = planned.plan(*args)
    assert plan.compiled.peak_bytes <= 0.5 * plan.baseline_peak_bytes
    plan.save(tmp_path / "plan.json")
    other = jaxremat.jit(chosen, budget=0.5, donate_argnums=0)
    assert other.load_plan(tmp_path / "plan.json", *args).decision == plan.decision
    assert str(other.trace(*args).jaxpr) == str(planned.trace(*args).jaxpr)
