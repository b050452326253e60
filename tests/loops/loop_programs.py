"""Small programs with loops, and ways to run them under any decision."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxremat.planner import loops
from jaxremat.trace.joint import read_primal


def array(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape) / 3, jnp.float32)


def decided(fun, args, argnums=0, choose=lambda loop: loops.decide(loop, 1e-7)):
    """`fun` with every loop emitted as chosen."""
    primal = read_primal(fun, args, argnums, False)
    run = loops.rewritten(primal, [choose(loop) for loop in loops.find(primal)])

    def planned(*args):
        return jax.tree.unflatten(primal.out_tree, run(jax.tree.leaves(args)))

    return planned


def all_decisions(fun, args, argnums=0):
    """`fun` once per price, from keeping everything to the deepest nesting."""
    found = {}
    for price in (0.0, *10.0 ** np.arange(-13, -1)):
        primal = read_primal(fun, args, argnums, False)
        decisions = tuple(loops.decide(loop, float(price)) for loop in loops.find(primal))
        found.setdefault(decisions, price)
    return {
        price: decided(fun, args, argnums, lambda loop, p=price: loops.decide(loop, float(p)))
        for price in found.values()
    }


def assert_same_gradients(fun, planned, args, argnums=0, tolerance=1e-5):
    plain = jax.jit(jax.value_and_grad(fun, argnums))(*args)
    other = jax.jit(jax.value_and_grad(planned, argnums))(*args)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(other), strict=True):
        scale = max(float(jnp.abs(a).max()), 1e-3)
        assert float(jnp.abs(a - b).max()) <= tolerance * scale


def recurrence(length=13, reverse=False, unroll=1):
    """A loss over a recurrence with constants, two carries, slices and stacked results."""

    def loss(w, xs):
        def body(carry, x):
            c, d = carry
            c = jnp.tanh(c @ w["a"] + x)
            d = jnp.sin(d * c) + x @ w["b"]
            return (c, d), (jnp.sum(c * d), d)

        start = (jnp.ones((3, 4)), jnp.full((3, 4), 0.1))
        (c, d), (sums, _) = lax.scan(body, start, xs, length, reverse, unroll)
        return jnp.sum(c * d) + jnp.sum(sums**2)

    return loss, ({"a": array(4, 4), "b": array(4, 4, seed=1)}, array(length, 3, 4, seed=2))
