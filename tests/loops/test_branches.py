"""Branches of conditionals are planned inside, and kernels, shard_map and custom rules are planned around."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import pallas as pl
from jax.sharding import PartitionSpec
from loop_programs import all_decisions, array, assert_all_same_gradients, assert_same_gradients, decided, decisions_of

import jaxremat


def deep(w, x):
    for _ in range(3):
        x = jnp.tanh(jnp.sin(x @ w) @ w)
    return x


def one_branch(w, x, flag):
    return jnp.sum(lax.cond(flag, functools.partial(deep, w), lambda x: 2.0 * x, jnp.sin(x @ w)) ** 2)


def both_branches(w, x, flag):
    return jnp.sum(lax.cond(flag, deep, lambda w, x: deep(w.T, jnp.cos(x)), w, x @ w) ** 2)


def three_branches(w, x, flag):
    shallow = lambda w, x: jnp.ones_like(x)
    return jnp.sum(lax.switch(jnp.int32(flag) + 1, [shallow, deep, lambda w, x: jnp.cos(deep(w, x))], w, x @ w) ** 2)


def two_results(w, x, flag):
    def branch(w, x, n):
        return deep(w, x), jnp.sin(x) * n, n + 1

    y, _, n = lax.cond(flag, branch, lambda w, x, n: (x, jnp.zeros_like(x), n), w, x @ w, 3)
    return jnp.sum(y) * n


def within_a_loop(w, x, flag):
    def body(c, t):
        return lax.cond((t % 2 == 0) & flag, functools.partial(deep, w), lambda c: c + t, c), jnp.sum(c)

    c, sums = lax.scan(body, x, jnp.arange(5.0))
    return jnp.sum(c**2) + jnp.sum(sums)


def with_a_loop(w, x, flag):
    loop = lambda x: lax.scan(lambda c, _: (jnp.sin(jnp.tanh(c @ w)), None), x, None, length=9)[0]
    return jnp.sum(lax.cond(flag, loop, lambda x: x, x @ w) ** 2)


def nested(w, x, flag):
    inner = lambda x: deep(w, lax.cond(jnp.sum(x) > 0, functools.partial(deep, w), jnp.sin, x))
    return jnp.sum(lax.cond(flag, inner, lambda x: x, x @ w) ** 2)


PROGRAMS = [one_branch, both_branches, three_branches, two_results, within_a_loop, with_a_loop, nested]


@pytest.mark.parametrize("loss", PROGRAMS, ids=lambda f: f.__name__)
def test_every_decision_gives_the_plain_gradients(loss):
    args = array(4, 4), array(3, 4), jnp.bool_(True)
    planned = all_decisions(loss, args, (0, 1))
    assert len(planned) > 1
    either = lambda fun: lambda w, x, flag: fun(w, x, flag) + 2.0 * fun(w, x, ~flag)
    assert_all_same_gradients(either(loss), map(either, planned), (*args[:2], jnp.bool_(True)), (0, 1))


@pytest.mark.parametrize("price", [0.0, 1e-2])
def test_second_order_and_vmap(price):
    args = array(4, 4), array(3, 4), True
    planned = decided(one_branch, args, (0, 1), price)
    slope = lambda fun: lambda w, x: jnp.sum(jax.grad(fun)(w, x, True) ** 2)
    assert_same_gradients(slope(one_branch), slope(planned), args[:2])
    flags = jnp.asarray([True, False, True])
    each = lambda fun: lambda w: jnp.sum(jax.vmap(fun, (None, None, 0))(w, args[1], flags) ** 2)
    assert_same_gradients(each(one_branch), each(planned), args[:1])


def test_branches_with_effects_are_left_alone():
    def loss(w, x, flag):
        def branch(x):
            jax.debug.print("{}", x[0, 0])
            return deep(w, x)

        return jnp.sum(lax.cond(flag, branch, lambda x: x, x @ w))

    assert decisions_of(loss, (array(4, 4), array(3, 4), True), 0, 1e-2) == ()


def test_a_branch_fits_in_less_than_it_holds():
    args = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((128, 128), (8192, 128))]
    args.append(jax.ShapeDtypeStruct((), bool))
    plan = jaxremat.plan(one_branch, *args, budget=0.6)
    assert plan.compiled.peak_bytes <= 0.6 * plan.baseline_peak_bytes
    assert "branch 1 of" in str(plan)


@jax.custom_vjp
def scaled(x, y):
    add = lambda x_ref, y_ref, out_ref: out_ref.__setitem__(..., x_ref[...] * jnp.tanh(y_ref[...]))
    return pl.pallas_call(add, out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype), interpret=True)(x, y)


scaled.defvjp(
    lambda x, y: (scaled(x, y), (x, y)),
    lambda saved, g: (g * jnp.tanh(saved[1]), g * saved[0] * (1 - jnp.tanh(saved[1]) ** 2)),
)


def kernel(w, x):
    for _ in range(4):
        x = jnp.sin(scaled(jnp.tanh(x @ w), jnp.cos(x)))
    return jnp.sum(x**2)


def kernel_in_a_loop(w, x):
    return jnp.sum(lax.scan(lambda c, _: (scaled(jnp.tanh(c @ w), jnp.cos(c)), None), x, None, length=8)[0] ** 2)


def over_a_mesh(w, x):
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = PartitionSpec("data")

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(PartitionSpec(), rows), out_specs=rows)
    def part(w, x):
        for _ in range(4):
            x = jnp.sin(jnp.tanh(x @ w))
        return x * lax.psum(jnp.sum(x), "data")

    return jnp.sum(jnp.cos(part(w, jnp.tanh(x @ w))) ** 2)


@pytest.mark.parametrize("loss", [kernel, kernel_in_a_loop, over_a_mesh], ids=lambda f: f.__name__)
@pytest.mark.parametrize("budget", [0.95, 0.88])
def test_composites_keep_their_gradients(loss, budget):
    args = array(8, 8), np.float32(0.5) * array(64, 8)
    plan = jaxremat.plan(loss, *args, budget=budget, argnums=(0, 1), verify="replay")
    assert plan.decision.emit == "schedule" and plan.peak_bytes < plan.baseline_peak_bytes
    assert_same_gradients(loss, plan.apply(loss), args, (0, 1))
