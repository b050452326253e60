"""Equal programs share a plan, across decorators and traces; a function is traced as often as `jax.checkpoint` does."""

import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gradient_programs import assert_same, is_planned
from jax import lax

import jaxremat

W = [jnp.asarray(np.random.default_rng(i).normal(size=(16, 16)) / 4, jnp.float32) for i in range(8)]
X = jnp.asarray(np.random.default_rng(9).normal(size=(256, 16)), jnp.float32)
planned = functools.partial(jaxremat.remat, budget=0.7)


def layered(ws, x):
    for w in ws:
        x = x + jnp.tanh(x @ w)
    return jnp.sum(x**2)


@pytest.fixture
def plans(caplog):
    caplog.set_level(logging.INFO, logger="jaxremat")
    return lambda: sum("planned for" in r.getMessage() for r in caplog.records)


def test_a_closure_decorated_in_each_eager_step(plans):
    for rate in (0.1, 0.2, 0.3):
        jax.grad(lambda ws, rate=rate: rate * planned(lambda ws: layered(ws, X))(ws))(W)
    assert plans() == 1


def test_equal_layers_of_one_model_and_of_another_trace(plans):
    def deep(ws, x):
        for w in ws:
            x = planned(lambda x, w: layered([w] * 6, x) + x)(x, w)
        return jnp.sum(x)

    jax.jit(jax.grad(deep))(W, X), jax.make_jaxpr(jax.grad(deep))(W[:4], X)
    assert plans() == 2  # nothing is differentiated with respect to the input of the first layer


def test_numbers_that_differ_do_not_make_another_program(plans):
    f = planned(lambda ws, x, rate: rate * layered(ws, x))
    assert_same(
        jax.grad(f)(W, X, 0.5),
        jax.grad(layered)(
            [*W],
            X,
        )
        if False
        else jax.grad(lambda ws: 0.5 * layered(ws, X))(W),
    )
    for step in range(3):
        jax.grad(f)(W, X, 0.1 * step)
    assert plans() == 1


def test_other_programs_budgets_and_shapes_are_planned_by_themselves(plans):
    jax.grad(planned(layered))(W, X)
    jax.grad(planned(layered))(W, X[:128])
    jax.grad(jaxremat.remat(layered, budget=0.8))(W, X)
    jax.grad(planned(lambda ws, x: layered(ws, jnp.sin(x))))(W, X)
    assert plans() == 4


@pytest.mark.parametrize("transform", [lambda f: f, jax.grad, lambda f: lambda *a: jax.vjp(f, *a)[0]])
def test_a_decorated_function_is_traced_once(transform):
    traced = 0

    @planned
    def f(ws, x):
        nonlocal traced
        traced += 1
        return layered(ws, x)

    for _ in range(5):
        transform(f)(W, X)
    assert traced == 1
    transform(f)(W, X[:128])
    assert traced == 2


TRACED = []


def test_static_arguments_are_traced_once_per_value():
    TRACED.clear()

    @functools.partial(jaxremat.remat, budget=1.0, static_argnames="depth")
    def f(ws, x, depth, flag=True):
        TRACED.append((depth, flag))
        return layered(ws[:depth], x) if flag else x.sum()

    for depth in (4, 5, 4, 5):
        jax.grad(f)(W, X, depth)
    jax.grad(f)(W, X, 4, flag=False)
    assert TRACED == [(4, True), (5, True), (4, False)]


class Held:
    """A model as an object: its arrays may be others at the next call."""

    def __init__(self, ws):
        self.ws = ws

    def loss(self, x):
        return layered(self.ws, x)


def test_what_is_not_seen_to_be_the_same_is_traced_again():
    held, scale = Held(W), np.ones((), np.float32)
    method, by_array = planned(held.loss), planned(lambda ws: layered(ws, X) * scale)
    before = method(X), by_array(W)
    held.ws, scale[...] = [2 * w for w in W], 3.0
    assert_same((method(X), by_array(W)), (layered(held.ws, X), 3 * layered(W, X)))
    assert not np.allclose(before[0], method(X))

    def through(ws):
        held.ws = ws
        return method(X)

    assert_same(jax.grad(through)(W), jax.grad(layered)(W, X))


def test_a_cell_that_is_filled_anew():
    w = W[0]
    f = planned(lambda x: layered([w] * 6, x))
    totals = []
    for w in W[:3]:  # noqa: B007
        totals.append(f(X))
    assert_same(totals, [layered([w] * 6, X) for w in W[:3]])


def planned_with(v):
    return planned(lambda x: layered([v] * 6, x))(X)


def test_a_gradient_with_respect_to_what_is_closed_over():
    assert_same(jax.grad(planned_with)(W[0]), jax.grad(lambda v: layered([v] * 6, X))(W[0]))
    assert_same(jax.grad(planned_with)(W[1]), jax.grad(lambda v: layered([v] * 6, X))(W[1]))


def second(f):
    return lambda ws: sum(jnp.sum(g**2) for g in jax.grad(f)(ws, X))


def penalty(f):
    return lambda ws: jnp.sum(jax.grad(f, 1)(ws, X) ** 2)


def mapped(f):
    return lambda ws: jnp.sum(jax.vmap(jax.grad(f, 1), (None, 0))(ws, X.reshape(4, 64, 16)) ** 2)


def peak_bytes(fun, *args):
    stats = jax.jit(jax.value_and_grad(fun)).lower(*args).compile().memory_analysis()
    return stats.argument_size_in_bytes + stats.output_size_in_bytes + stats.temp_size_in_bytes


@pytest.mark.parametrize("of", [second, penalty, mapped])
def test_a_second_order_takes_no_more_than_the_plain_program(of):
    plan = jaxremat.plan(layered, W, X, budget=0.7, argnums=(0, 1), verify="replay")
    mini = jaxremat.plan(layered, W, X[:64], budget=0.7, argnums=(0, 1), verify="replay")
    for ours in (planned(layered), mini.apply(layered) if of is mapped else plan.apply(layered)):
        assert peak_bytes(of(ours), W) <= 1.02 * peak_bytes(of(layered), W)
        assert_same(jax.jit(jax.grad(of(ours)))(W), jax.jit(jax.grad(of(layered)))(W))


@pytest.mark.parametrize(
    "forward",
    [
        lambda f: jax.jvp(lambda ws: f(ws, X), (W,), (W,)),
        lambda f: jax.jacfwd(f, 1)(W, X),
        lambda f: jax.linearize(lambda ws: f(ws, X), W),
        lambda f: jax.jit(jax.vmap(lambda s: jax.jvp(lambda x: f(W, x), (s * X,), (X,))))(jnp.ones(2)),
    ],
)
def test_forward_mode_names_the_form_that_has_it(forward):
    plan = jaxremat.plan(layered, W, X, budget=0.7, argnums=(0, 1), verify="replay")
    for ours in (planned(layered), plan.apply(layered)):
        with pytest.raises(jaxremat.EmissionError, match="segments"):
            forward(ours)
    forward(jaxremat.remat(layered, budget=0.9, emit="segments"))


def test_forward_over_reverse_stays_planned():
    along = lambda f: jax.jvp(lambda ws: jax.grad(f)(ws, X), (W,), (W,))
    assert_same(along(planned(layered)), along(layered))
    assert is_planned(planned(layered), W, X)


@pytest.mark.parametrize("emit", ["schedule", "segments"])
def test_a_while_loop_has_forward_mode_as_without_us(emit):
    def until(w, x):
        return lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, jnp.sin(c[1] @ w)), (0, x))[1].sum()

    ours = jaxremat.remat(until, budget=0.9, emit=emit)
    along = lambda f: (jax.jvp(lambda w: f(w, X), (W[0],), (W[1],)), jax.linearize(lambda w: f(w, X), W[0])[1](W[1]))
    assert_same(along(ours), along(until))
    with pytest.raises(ValueError, match="Reverse-mode"):
        jax.grad(ours)(W[0], X)


def test_a_while_loop_beside_what_is_differentiated_leaves_the_rest_planned():
    def beside(ws, x):
        return layered(ws, lax.while_loop(lambda c: jnp.sum(c**2) > 10, lambda c: 0.5 * c, x))

    assert_same(jax.jit(jax.grad(planned(beside)))(W, X), jax.jit(jax.grad(beside))(W, X))
    assert is_planned(planned(beside), W, X)


def until(x, w):
    return lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, jnp.sin(c[1] @ w)), (0, x))[1]


def stopped(x, w):
    return x + jnp.tanh(x @ w) * lax.stop_gradient(until(x, w))


def in_a_branch(x, w):
    return lax.cond(x[0, 0] > 0, stopped, lambda x, w: x + jnp.tanh(x @ w), x, w)


@pytest.mark.parametrize("layer", [stopped, in_a_branch])
@pytest.mark.parametrize("scan", [False, True])
def test_a_while_loop_whose_results_have_no_gradient_is_planned(layer, scan):
    def loss(ws, x):
        if scan:
            return jnp.sum(lax.scan(lambda x, w: (layer(x, w), None), x, jnp.stack(ws))[0] ** 2)
        for w in ws:
            x = layer(x, w)
        return jnp.sum(x**2)

    assert_same(jax.jit(jax.grad(planned(loss)))(W, X), jax.jit(jax.grad(loss))(W, X))
    assert is_planned(planned(loss), W, X)


def test_a_plan_is_not_shared_into_a_mesh():
    """Bodies of loops are traced with the mesh that is set: outside of it they are other programs."""

    def loss(ws, x):
        return jnp.sum(lax.scan(lambda x, w: (x + jnp.tanh(x @ w), None), x, jnp.stack(ws))[0] ** 2)

    jax.jit(jax.grad(planned(loss)))(W, X)
    with jax.set_mesh(jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))):
        assert_same(jax.jit(jax.grad(planned(loss)))(W, X), jax.jit(jax.grad(loss))(W, X))
