"""Every decision gives the gradients of the plain loop, whatever the loop looks like."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from loop_programs import (
    all_decisions,
    applied,
    array,
    assert_all_same_gradients,
    assert_same_gradients,
    decided,
    decisions_of,
    loops_of,
    recurrence,
)

from jaxremat.backends.devices import resolve_target
from jaxremat.cost.pricing import program_seconds
from jaxremat.loops.decision import LoopDecision
from jaxremat.trace import jaxpr as jaxprs


@pytest.mark.parametrize("length,reverse", [(1, False), (2, True), (13, False), (13, True)])
def test_every_decision_gives_the_plain_gradients_of_a_recurrence(length, reverse):
    loss, args = recurrence(length, reverse)
    planned = all_decisions(loss, args, (0, 1))
    assert len(planned) > 2 or length < 13
    assert_all_same_gradients(loss, planned, args, (0, 1))


def test_every_decision_gives_the_plain_gradients_of_an_unrolled_scan():
    loss, args = recurrence(7, False, 3)
    assert_all_same_gradients(loss, all_decisions(loss, args), args)


def _no_scanned_inputs(w):
    return jnp.sum(lax.scan(lambda c, _: (jnp.tanh(c @ w), None), jnp.ones((2, 4)), None, length=11)[0])


def _fori(w):
    return jnp.sum(lax.fori_loop(0, 11, lambda i, c: jnp.tanh(c @ w) + i, jnp.ones((2, 4))))


def _empty(w):
    carry, results = lax.scan(lambda c, x: (jnp.tanh(c @ w) + x, c), jnp.ones((2, 4)), jnp.zeros((0, 2, 4)))
    return jnp.sum(carry * w[0]) + jnp.sum(results)


def _integers(w):
    def body(carry, t):
        c, i, flag = carry
        c = jnp.where(flag, jnp.tanh(c @ w), jnp.sin(c @ w)) + i * t
        return (c, i + t, ~flag), (i, c)

    (c, i, _), (seen, cs) = lax.scan(body, (jnp.ones((2, 4)), 0, True), jnp.arange(9))
    return jnp.sum(c) * i / 100 + jnp.sum(cs * seen[:, None, None])


def _keys(w):
    def body(carry, key):
        c, running = carry
        running, sub = jax.random.split(running)
        noise = jax.random.uniform(sub, (2, 4)) + jax.random.uniform(key, (2, 4))
        return (jnp.tanh(c @ w + noise), running), c

    keys = jax.random.split(jax.random.key(1), 9)
    (c, _), results = lax.scan(body, (jnp.ones((2, 4)), jax.random.key(0)), keys)
    return jnp.sum(c) + jnp.sum(results**2)


def _key_results(w):
    def body(carry, key):
        c, last = carry
        return (jnp.tanh(c @ w + jax.random.uniform(key, (2, 4))), key), (c, jax.random.fold_in(last, 1))

    keys = jax.random.split(jax.random.key(1), 9)
    (c, _), (results, made) = lax.scan(body, (jnp.ones((2, 4)), keys[0]), keys)
    return jnp.sum(c * jax.random.uniform(made[3], (2, 4))) + jnp.sum(results**2)


def _nested(w):
    def outer(c, x):
        c, inner = lax.scan(lambda d, y: (jnp.tanh(d @ w + y), jnp.sin(d)), c, x)
        return jnp.cos(c @ w), inner

    c, results = lax.scan(outer, jnp.ones((2, 4)), jnp.linspace(0, 1, 5 * 7 * 8).reshape(5, 7, 2, 4))
    return jnp.sum(c) + jnp.sum(results**2)


def _branches_and_while(w):
    def body(c, t):
        c = lax.cond(t % 2 == 0, lambda c: jnp.sin(c @ w), lambda c: c * 2.0, c)
        c = lax.switch(t % 3, [jnp.tanh, jnp.cos, lambda c: c @ w], c)
        steps, _ = lax.while_loop(lambda s: s[0] < t, lambda s: (s[0] + 1, s[1] * 2), (0, 1.0))
        return c + steps, jnp.sum(c)

    c, results = lax.scan(body, jnp.ones((2, 4)), jnp.arange(9), reverse=True)
    return jnp.sum(c) + jnp.sum(results)


@jax.custom_vjp
def _scaled(x, w):
    return jnp.tanh(x @ w)


_scaled.defvjp(
    lambda x, w: (jnp.tanh(x @ w), (x, w)),
    lambda saved, g: (0.5 * g @ saved[1].T, jnp.sum(saved[0]) * jnp.ones_like(saved[1])),
)


def _custom_rules(w):
    @jax.checkpoint
    def body(c, x):
        c = _scaled(jax.nn.relu(c + x), w)
        return jax.nn.logsumexp(c) * c, lax.stop_gradient(c) * x

    c, results = lax.scan(body, jnp.ones((2, 4)), jnp.linspace(0, 1, 9))
    return jnp.sum(c) + jnp.sum(results * c)


def _half_precision(w):
    def body(c, x):
        return (c.astype(jnp.bfloat16) @ w.astype(jnp.bfloat16)).astype(jnp.float32) + x, c.astype(jnp.float16)

    c, results = lax.scan(body, jnp.ones((2, 4)), jnp.linspace(0, 1, 9))
    return jnp.sum(c) + jnp.sum(results.astype(jnp.float32))


def _complex(w):
    c, results = lax.scan(
        lambda c, x: (c * jnp.exp(1j * x) @ w, jnp.abs(c)), jnp.ones((2, 4), complex), jnp.arange(9.0)
    )
    return jnp.sum(jnp.abs(c)) + jnp.sum(results)


def _closed_constants(w):
    table, mask = np.linspace(-1, 1, 16, dtype=np.float32).reshape(4, 4), np.eye(4, dtype=bool)

    def body(c, _):
        return jnp.tanh(c @ jnp.where(mask, w @ table, w)) + table[0], jnp.mean(w**2)

    c, results = lax.scan(body, jnp.ones((2, 4)), None, length=9)
    return jnp.sum(c) + jnp.sum(results)


def _unused_results(w):
    def body(carry, x):
        c, d = carry
        return (jnp.tanh(c @ w), d @ w), (d + x, c)

    (c, _), (_, results) = lax.scan(body, (jnp.ones((2, 4)), jnp.ones((2, 4))), jnp.arange(9.0))
    return jnp.sum(c) + jnp.sum(results[2])


def _two_loops(w):
    step = lambda c, x: (jnp.tanh(c @ w + x), jnp.sin(c))
    c, results = lax.scan(step, jnp.ones((2, 4)), jnp.linspace(0, 1, 9))
    d, more = lax.scan(step, c, results, reverse=True)
    return jnp.sum(d) + jnp.sum(more[3])


def _batch_first(w):
    """The program transposes what it scans over, and what comes out."""
    xs = jnp.linspace(0, 1, 3 * 9 * 4).reshape(3, 9, 4) @ w
    c, results = lax.scan(lambda c, x: (jnp.tanh(c @ w + x), jnp.sin(c)), jnp.ones((3, 4)), jnp.swapaxes(xs, 0, 1))
    return jnp.sum(c) + jnp.sum((jnp.swapaxes(results, 0, 1) - xs) ** 2)


PROGRAMS = [
    _batch_first,
    _no_scanned_inputs,
    _fori,
    _empty,
    _integers,
    _keys,
    _key_results,
    _nested,
    _branches_and_while,
    _custom_rules,
    _half_precision,
    _complex,
    _closed_constants,
    _unused_results,
    _two_loops,
]


@pytest.mark.parametrize("loss", PROGRAMS, ids=lambda f: f.__name__[1:])
def test_every_decision_gives_the_plain_gradients_of_other_bodies(loss):
    args = (array(4, 4),)
    tolerance = 2e-2 if loss is _half_precision else 1e-5
    assert_all_same_gradients(loss, all_decisions(loss, args), args, tolerance=tolerance)


@pytest.mark.parametrize("price", [0.0, 1e-9, 1e-2])
def test_second_order(price):
    loss, args = recurrence(6)
    planned = decided(loss, args, (0, 1), price)

    def curvature(fun, w, xs):
        slope = lambda w: jax.tree.leaves(jax.grad(fun)(w, xs))[0]
        return jnp.sum(slope(w) ** 2)

    assert_same_gradients(functools.partial(curvature, loss), functools.partial(curvature, planned), args)


@pytest.mark.parametrize("price", [0.0, 1e-9, 1e-2])
def test_planned_loops_map_over_batches(price):
    loss, (w, xs) = recurrence(6)
    planned = decided(loss, (w, xs), 1, price)
    batch = jnp.stack([xs, xs + 0.1, -xs])
    each = lambda fun: lambda xs: jnp.sum(jax.vmap(fun, (None, 0))(w, xs) ** 2)
    assert_same_gradients(each(loss), each(planned), (batch,))


def test_inside_a_scan():
    loss, (w, xs) = recurrence(6)
    planned = decided(loss, (w, xs), 0, 1e-2)
    over = lambda fun: lambda w: jnp.sum(lax.scan(lambda c, t: (c + fun(w, xs * t), None), 0.0, jnp.arange(3.0))[0])
    assert_same_gradients(over(loss), over(planned), (w,))


def test_loops_with_effects_are_left_alone():
    def loss(w):
        def body(c, _):
            jax.debug.print("{}", c[0, 0])
            return jnp.tanh(c @ w), None

        return jnp.sum(lax.scan(body, jnp.ones((2, 4)), None, length=3)[0])

    assert decisions_of(loss, (array(4, 4),), 0, 1e-2) == ()


def test_a_split_loop_costs_what_a_whole_one_does():
    """Pieces read and write entries of stacks in place: a slice or an update each, no call, no arithmetic."""
    loss, args = recurrence(12)
    loops = loops_of(loss, args)
    (loop,) = loops.found
    plain = loops.options(loop)[0].decision.pieces[0]
    halves = [dataclasses.replace(plain, count=count) for count in (5, 7)]
    device = resolve_target("h200")

    def seconds(*pieces):
        planned = applied(loss, args, 0, [LoopDecision(pieces)])
        return program_seconds(jaxprs.inline_calls(jax.make_jaxpr(jax.grad(planned))(*args)), device)

    assert seconds(*halves) == pytest.approx(seconds(plain), rel=0.1)


def test_pieces_do_without_transposed_copies():
    """They read and write entries where these lie; a scan over everything takes copies in order."""
    loops = loops_of(_batch_first, (array(4, 4),))
    (loop,) = loops.found
    assert loop.scanned_axes == loop.result_axes == (1,)

    def copies(decision):
        gradient = jax.make_jaxpr(jax.grad(applied(_batch_first, (array(4, 4),), 0, [decision])))(array(4, 4))
        inlined = jaxprs.inline_calls(gradient)
        return [
            eqn for eqn in inlined.eqns if eqn.primitive.name == "transpose" and eqn.invars[0].aval.size == 3 * 9 * 4
        ]

    whole, nested = loops.options(loop)[0].decision, loops.options(loop)[-1].decision
    assert nested.pieces[0].inside and copies(whole) and not copies(nested)


def test_the_last_axis_is_copied():
    """Entries along it are scattered over memory."""

    def loss(w):
        xs = jnp.linspace(0, 1, 3 * 4 * 9).reshape(3, 4, 9) * w[0, 0]
        return jnp.sum(lax.scan(lambda c, x: (jnp.tanh(c @ w + x), None), jnp.ones((3, 4)), jnp.moveaxis(xs, 2, 0))[0])

    assert loops_of(loss, (array(4, 4),)).found[0].scanned_axes == (0,)
