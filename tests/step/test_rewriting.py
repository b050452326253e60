"""Programs with bodies inside: linear solves are planned as what solves them."""

import jax
import jax.numpy as jnp
import pytest
import step_programs
from jax.scipy.sparse.linalg import cg
from step_programs import copied, numbers

import jaxremat

WIDTH = 64


def _moved(params, grads):
    return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)


def newton(params, x):
    """A step along what conjugate gradients make of products with the Hessian."""
    loss = lambda params: step_programs._loss(params, x)
    value, grads = jax.value_and_grad(loss)(params)
    damped = lambda v: jax.tree.map(lambda h, v: h + v, jax.jvp(jax.grad(loss), (params,), (v,))[1], v)
    return _moved(params, cg(damped, grads, maxiter=2)[0]), value


def equilibrium(params, x):
    """A layer that is a fixed point, its gradient by the implicit function theorem; other layers before it."""

    def loss(params):
        h = step_programs._forward(params, x)
        moved = lambda z: jnp.tanh(0.1 * z @ params[0] + h) - z
        iterated = lambda f, z: jax.lax.fori_loop(0, 5, lambda _, z: z + f(z), z)
        solved = lambda g, y: jax.lax.fori_loop(0, 5, lambda _, v: v + g(v) - y, jnp.zeros_like(y))
        return (jax.lax.custom_root(moved, jnp.zeros_like(h), iterated, solved) ** 2).mean()

    value, grads = jax.value_and_grad(loss)(params)
    return _moved(params, grads), value


def within_a_scan(params, x):
    """Newton steps in a scan."""
    return jax.lax.scan(lambda params, _: newton(params, x), params, None, length=2)


def direct(params, x):
    """A ridge regression on what layers compute, solved by a factorization."""

    def loss(params):
        h = step_programs._forward(params, x)
        weights = jnp.linalg.solve(h.T @ h / len(h) + jnp.eye(WIDTH), h.T @ x / len(h))
        return ((h @ weights - x) ** 2).mean()

    value, grads = jax.value_and_grad(loss)(params)
    return _moved(params, grads), value


@pytest.mark.parametrize("step", [newton, equilibrium, within_a_scan, direct])
def test_linear_solves_are_planned_inside(step):
    params, x = step_programs._weights(4, WIDTH), step_programs._data(2048, WIDTH)
    planned = jaxremat.jit(step, budget=0.7, donate_argnums=0)
    plan = planned.plan(params, x)
    assert plan.compiled.peak_bytes <= 0.7 * plan.baseline_peak_bytes
    for mine, expected in zip(numbers(planned(copied(params), x)), numbers(jax.jit(step)(params, x)), strict=True):
        assert mine == pytest.approx(expected, rel=2e-3, abs=1e-5)
