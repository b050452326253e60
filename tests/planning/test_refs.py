"""Functions that make a `jax.Ref` and change it: it is planned as the values that it holds."""

import jax
import jax.numpy as jnp
import pytest
from gradient_programs import assert_same, count
from jax import lax

import jaxremat

WS = tuple(0.1 * jax.random.normal(key, (32, 32)) for key in jax.random.split(jax.random.key(0), 6))
X = jax.random.normal(jax.random.key(1), (512, 32))


def layer(x, w):
    return x + jnp.tanh(jnp.sin(x @ w))


def loss(x):
    return jnp.mean(x**2)


def as_a_sum(ws, x):
    total = jax.new_ref(jnp.zeros(()))
    for w in ws:
        x = layer(x, w)
        total[...] += loss(x)
    return jax.freeze(total)


def as_a_buffer(ws, x):
    state = jax.new_ref(x)
    for w in ws:
        state[...] = layer(state[...], w)
    return loss(state[...])


def by_rows(ws, x):
    """Rows that are written one after another, and read once before another is written over."""
    rows = jax.new_ref(jnp.zeros((2, *x.shape)))
    for k, w in enumerate(ws):
        x = layer(x, w)
        rows[k % 2] = x
    return loss(jax.freeze(rows))


def around_a_scan(ws, x):
    total = jax.new_ref(jnp.zeros(()))

    def body(x, w):
        x = layer(x, w)
        total[...] += loss(x)
        return x, None

    return loss(lax.scan(body, x, jnp.stack(ws))[0]) + jax.freeze(total)


def around_branches(ws, x):
    state = jax.new_ref(x)

    def write(w):
        state[...] = layer(state[...], w)

    for w in ws:
        lax.cond(w[0, 0] > 0, write, lambda w: None, w)
    return loss(jax.freeze(state))


def inside_a_call(ws, x):
    @jax.jit
    def called(x, w):
        state = jax.new_ref(x)
        state[...] = layer(state[...], w)
        return jax.freeze(state)

    for w in ws:
        x = called(x, w)
    return loss(x)


PROGRAMS = [as_a_sum, as_a_buffer, by_rows, around_a_scan, around_branches, inside_a_call]


@pytest.mark.parametrize("fun", PROGRAMS, ids=lambda fun: fun.__name__)
def test_a_ref_that_the_loss_makes_is_planned(fun):
    plan = jaxremat.plan(fun, WS, X, budget=0.75, verify="replay")
    assert plan.decision.emit == "schedule" and plan.peak_bytes < plan.baseline_peak_bytes
    planned = jaxremat.remat(fun, budget=0.75)
    assert_same(jax.jit(jax.value_and_grad(planned))(WS, X), jax.jit(jax.value_and_grad(fun))(WS, X))


@pytest.mark.parametrize("fun", [as_a_buffer, around_a_scan], ids=lambda fun: fun.__name__)
def test_the_compiled_program_fits(fun):
    plan = jaxremat.plan(fun, WS, X, budget=0.7)
    assert plan.compiled.peak_bytes <= plan.budget_bytes < plan.baseline_peak_bytes
    assert count(plan.apply(fun), WS, X) > count(fun, WS, X) or plan.decision.form.loops


def test_what_is_logged_in_a_ref_comes_out():
    def logging(ws, x):
        log = jax.new_ref(jnp.zeros(len(ws)))
        for k, w in enumerate(ws):
            x = layer(x, w)
            log[k] = lax.stop_gradient(jnp.abs(x).mean())
        return loss(x), jax.freeze(log)

    planned = jaxremat.remat(logging, budget=0.75, has_aux=True)
    assert_same(jax.value_and_grad(planned, has_aux=True)(WS, X), jax.value_and_grad(logging, has_aux=True)(WS, X))


def test_a_ref_in_forward_mode_and_in_checkpoints():
    planned = jaxremat.remat(as_a_buffer, budget=0.9, emit="segments")
    assert_same(jax.jvp(planned, (WS, X), (WS, X)), jax.jvp(as_a_buffer, (WS, X), (WS, X)))
    assert_same(jax.grad(planned)(WS, X), jax.grad(as_a_buffer)(WS, X))


def test_a_step_whose_loss_makes_a_ref():
    def step(ws, x):
        value, grads = jax.value_and_grad(around_a_scan)(ws, x)
        return jax.tree.map(lambda w, g: w - 0.1 * g, ws, grads), value

    planned = jaxremat.jit(step, budget=0.7)
    assert planned.plan(WS, X).compiled.peak_bytes <= 0.7 * planned.plan(WS, X).baseline_peak_bytes
    assert_same(planned(WS, X), jax.jit(step)(WS, X))


def test_a_step_that_closes_over_a_ref_changes_it_and_one_that_takes_it_is_refused_by_name():
    counter = jax.new_ref(jnp.zeros(()))

    def step(ws, x, counter=counter):
        counter[...] += 1
        value, grads = jax.value_and_grad(loss_of_layers)(ws, x)
        return jax.tree.map(lambda w, g: w - 0.1 * g, ws, grads), value

    planned = jaxremat.jit(step, budget=0.7)
    assert_same(planned(WS, X), jax.jit(step)(WS, X))
    assert counter[...] == 2
    with pytest.raises(jaxremat.ArgumentError, match=r"counter is a jax\.Ref"):
        planned(WS, X, counter)


def loss_of_layers(ws, x):
    for w in ws:
        x = layer(x, w)
    return loss(x)
