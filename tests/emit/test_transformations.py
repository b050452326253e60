"""A planned function is the function: the same values and gradients under every transformation, in every form."""

import functools

import jax
import jax.numpy as jnp
import pytest
from emitted import ARGS, FORMS, PLAIN_JAX, assert_same, network, network_plan, products
from jax import lax

import jaxremat

PARAMS, X, MASK, LABELS = ARGS
OTHER = jax.tree.map(lambda w: 0.5 * w + 0.1, PARAMS)


def _values(f):
    return jax.value_and_grad(f)(*ARGS), f(*ARGS)


def _vmap(f):
    xs, labels = jnp.stack([X, -X]), jnp.stack([LABELS, 3 - LABELS])
    stacked = jax.tree.map(lambda *ws: jnp.stack(ws), PARAMS, OTHER)
    inside = jax.vmap(jax.grad(f), (None, 0, None, 0))(PARAMS, xs, MASK, labels)
    total = lambda p: jnp.sum(jax.vmap(f, (0, None, None, 0))(p, X, MASK, labels) * jnp.array([1.0, 3.0]))
    return inside, jax.grad(total)(stacked)


def _scan(f):
    xs = jnp.stack([X, -X, 2 * X])
    descend = lambda p, x: (jax.tree.map(lambda w, g: w - 0.1 * g, p, jax.grad(f)(p, x, MASK, LABELS)), None)
    through = jax.grad(lambda p: lax.scan(lambda t, x: (t + f(p, x, MASK, LABELS), None), 0.0, xs)[0])
    return lax.scan(descend, PARAMS, xs)[0], through(PARAMS)


def _second_order(f):
    along = lambda p: sum(jnp.vdot(g, w) for g, w in zip(*map(jax.tree.leaves, (_gradient(f, p), OTHER))))
    return jax.grad(along)(PARAMS)


def _gradient(f, p):
    return jax.grad(f)(p, X, MASK, LABELS)


def _two_calls(f):
    """Two batches through one plan: neither knows of the other."""
    return jax.grad(lambda p: f(p, X, MASK, LABELS) * f(p, -X, ~MASK, 3 - LABELS))(PARAMS)


def _branches(f):
    choose = lambda p, x: lax.cond(x[0, 0] > 0, lambda x: f(p, x, MASK, LABELS), lambda x: jnp.sum(x), x)
    return jax.grad(lambda p: choose(p, jnp.abs(X)) + choose(p, -jnp.abs(X)))(PARAMS)


def _forward_mode(f):
    return jax.jvp(lambda p: f(p, X, MASK, LABELS), (PARAMS,), (OTHER,))


def _forward_over_reverse(f):
    return jax.jvp(functools.partial(_gradient, f), (PARAMS,), (OTHER,))


REVERSE = (_values, _vmap, _scan, _second_order, _two_calls, _branches)
FORWARD = (_forward_mode, _forward_over_reverse)


@functools.cache
def plainly(transformed):
    return jax.jit(lambda: transformed(network))()


def check(transformed, form):
    planned = network_plan(form).apply(network)
    assert_same(jax.jit(lambda: transformed(planned))(), plainly(transformed), rtol=1e-4)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("transformed", REVERSE, ids=lambda f: f.__name__.strip("_"))
def test_reverse_mode(transformed, form):
    check(transformed, form)


@pytest.mark.parametrize("form", PLAIN_JAX)
@pytest.mark.parametrize("transformed", FORWARD, ids=lambda f: f.__name__.strip("_"))
def test_forward_mode_where_the_form_is_plain_jax(transformed, form):
    check(transformed, form)


def test_the_schedule_refuses_forward_mode_and_names_the_form_that_has_it():
    with pytest.raises(jaxremat.EmissionError, match="emit='segments'"):
        _forward_mode(network_plan("schedule").apply(network))


@pytest.mark.parametrize("form", FORMS)
def test_these_plans_run_products_again(form):
    planned = network_plan(form).apply(network)
    assert products(jax.grad(planned), *ARGS) > products(jax.grad(network), *ARGS)
    assert products(planned, *ARGS) == products(network, *ARGS)


def test_without_jit():
    planned = network_plan("schedule").apply(network)
    assert_same(_gradient(planned, OTHER), jax.jit(lambda: _gradient(network, OTHER))(), rtol=1e-4)
