"""Small programs with loops, and ways to run them under any decision."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxremat.backends.devices import resolve_target
from jaxremat.loops.decide import Loops
from jaxremat.loops.emit import rewritten
from jaxremat.trace import jaxpr as jaxprs
from jaxremat.trace.primal import read_primal


def array(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape) / 3, jnp.float32)


def loops_of(fun, args, argnums=0) -> Loops:
    """The loops of `fun` on this machine."""
    return Loops(read_primal(fun, args, argnums, False), resolve_target(None))


def decisions_of(fun, args, argnums, price) -> tuple:
    """One decision per loop of `fun`, at a price in seconds per byte."""
    return loops_of(fun, args, argnums).decide(price)


def applied(fun, args, argnums, decisions):
    """`fun` with its loops emitted as decided."""
    primal = read_primal(fun, args, argnums, False)
    run = rewritten(primal, decisions, resolve_target(None).backend)
    return lambda *args: jax.tree.unflatten(primal.out_tree, run(jax.tree.leaves(args)))


def decided(fun, args, argnums=0, price=1e-7):
    return applied(fun, args, argnums, decisions_of(fun, args, argnums, price))


def all_decisions(fun, args, argnums=0) -> list:
    """`fun` under distinct decisions: keep everything, the middle of the hull, its deepest nesting, and a split."""
    loops = loops_of(fun, args, argnums)
    corners = [loops.options(loop) for loop in loops.found]
    chosen = [tuple(c[int(part * (len(c) - 1))].decision for c in corners) for part in (0.0, 0.5, 1.0)]
    chosen.append(tuple(loops.estimate(loop, split_price(c)).decision for loop, c in zip(loops.found, corners)))
    return [applied(fun, args, argnums, decisions) for decisions in dict.fromkeys(chosen)]


def split_price(corners) -> float:
    """A price in seconds per byte at which early iterations choose otherwise than late ones."""
    if len(corners) == 1:
        return 1e-9
    more, less = corners[-2:]
    saved = more.held_bytes + more.transient_bytes - less.held_bytes - less.transient_bytes
    return (less.extra_seconds - more.extra_seconds) / saved * 0.975


def assert_same_gradients(fun, planned, args, argnums=0, tolerance=1e-5):
    assert_all_same_gradients(fun, [planned], args, argnums, tolerance)


def assert_all_same_gradients(fun, several, args, argnums=0, tolerance=1e-5):
    """Those of each of several functions are those of `fun`, which are not all zero."""
    gradients = lambda fun: jax.tree.leaves(jax.jit(jax.value_and_grad(fun, argnums))(*args))
    plain = gradients(fun)
    assert any(np.any(np.asarray(a) != 0) for a in plain[1:])
    for planned in several:
        for a, b in zip(plain, gradients(planned), strict=True):
            np.testing.assert_allclose(b, a, rtol=tolerance, atol=tolerance * max(float(jnp.abs(a).max()), 1e-3))


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


def products(fun, *args, argnums=0) -> int:
    """Matrix products that the gradient runs, trip counts multiplied."""

    def count(jaxpr) -> int:
        total = 0
        for eqn in jaxpr.eqns:
            inner = sum(map(count, jaxprs.subjaxprs(eqn)))
            total += inner * eqn.params.get("length", 1) + (eqn.primitive.name == "dot_general")
        return total

    return count(jax.make_jaxpr(jax.value_and_grad(fun, argnums))(*args))


def only_loop(fun, args, argnums=0):
    """(the loops of `fun`, the only one)."""
    loops = loops_of(fun, args, argnums)
    (loop,) = loops.found
    return loops, loop
