"""Derivative rules of one's own: told by what they compute, wherever they stand."""

import jax
import jax.numpy as jnp
import pytest

from jaxremat.trace.own_rules import own_rules
from jaxremat.trace.primal import read_primal

X = jax.ShapeDtypeStruct((8, 4), jnp.float32)


def with_rule(slope):
    @jax.custom_vjp
    def f(x):
        return jnp.sin(x)

    f.defvjp(lambda x: (f(x), x), lambda x, g: (slope(g * jnp.cos(x)),))
    return f


def with_tangent(slope):
    @jax.custom_jvp
    def f(x):
        return jnp.sin(x)

    f.defjvp(lambda primals, tangents: (f(*primals), slope(tangents[0])))
    return f


def scanned(f):
    return lambda x: jax.lax.scan(lambda carry, row: (carry + f(row), None), jnp.zeros(4), x)[0]


def branched(f):
    return lambda x: jax.lax.cond(x[0, 0] > 0, f, lambda x: x, x)


def rules(fun):
    return list(own_rules(read_primal(lambda x: jnp.sum(fun(x)), (X,), 0, False).jaxpr.eqns))


def test_a_program_without_any_has_none():
    assert rules(jnp.tanh) == []


@pytest.mark.parametrize("kind", [with_rule, with_tangent])
@pytest.mark.parametrize("place", [lambda f: f, scanned, branched, jax.checkpoint])
def test_equal_rules_are_equal_and_others_are_not(kind, place):
    once, again, other = (rules(place(kind(slope))) for slope in (jnp.negative, jnp.negative, lambda t: 2.0 * t))
    assert once == again != other


def test_each_use_is_told():
    f = with_rule(jnp.negative)
    assert len(rules(lambda x: f(f(x)))) == 2 * len(rules(f))


def test_a_rule_that_cannot_be_traced_is_like_no_other():
    f = with_rule(lambda g: g.no_such_thing)
    assert rules(lambda x: x + jax.lax.stop_gradient(f(x))) != rules(lambda x: x + jax.lax.stop_gradient(f(x)))


def test_results_without_a_gradient_are_passed_over():
    @jax.custom_vjp
    def ranked(x):
        return jnp.sort(x), jnp.argsort(x)

    ranked.defvjp(lambda x: (ranked(x), None), lambda _, g: (g[0],))
    assert rules(lambda x: ranked(x)[0])
