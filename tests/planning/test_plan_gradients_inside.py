"""Losses that take a gradient themselves, in unrolled code and in loops."""

import functools

import jax
import jax.numpy as jnp
import pytest
from gradient_programs import assert_same

import jaxremat

WS = tuple(0.25 * jax.random.normal(key, (16, 16)) for key in jax.random.split(jax.random.key(0), 5))
X = jax.random.normal(jax.random.key(1), (512, 16))


def network(ws, x):
    for w in ws:
        x = jnp.tanh(x @ w)
    return x


def energy(ws, x):
    return jnp.sum(network(ws, x) ** 2)


def forces(ws, x):
    return jnp.mean((jax.grad(energy, 1)(ws, x) - 0.1 * x) ** 2)


def penalized(ws, x):
    return energy(ws, x) + 0.01 * jnp.mean(jax.grad(energy, 1)(ws, x) ** 2)


def scores(ws, x):
    gradient = functools.partial(jax.grad(energy, 1), ws)
    value, along = jax.jvp(gradient, (x,), (jnp.ones_like(x),))
    return jnp.mean(0.5 * jnp.sum(value**2, -1) + jnp.sum(along, -1))


def residual(ws, x):
    """Of a differential equation that the network is to solve."""
    ones = jnp.ones_like(x)
    first = lambda x: jax.jvp(functools.partial(network, ws), (x,), (ones,))[1]
    return jnp.mean((jax.jvp(first, (x,), (ones,))[1] + network(ws, x)) ** 2)


def adapted(ws, x):
    inner = jax.tree.map(lambda w, g: w - 0.01 * g, ws, jax.grad(energy)(ws, x[:256]))
    return energy(inner, x[256:])


def through_a_scan(ws, x):
    def scanned(x):
        return jnp.sum(jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, jnp.stack(ws))[0] ** 2)

    return jnp.mean((jax.grad(scanned)(x) - x) ** 2)


LOSSES = [forces, penalized, scores, residual, adapted, through_a_scan]


@pytest.mark.parametrize("fun", LOSSES, ids=lambda fun: fun.__name__)
def test_it_is_planned_to_seven_tenths(fun):
    plan = jaxremat.plan(fun, WS, X, budget=0.7)
    assert plan.compiled.peak_bytes <= 0.7 * plan.baseline_peak_bytes
    assert_same(jax.jit(jax.grad(plan.apply(fun)))(WS, X), jax.jit(jax.grad(fun))(WS, X), rtol=1e-3)
