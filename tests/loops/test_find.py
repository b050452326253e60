"""Which loops a program has, what is differentiated of them, and what runs before them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from loop_programs import array, decided, loops_of, only_loop, products

from jaxremat.loops.find import find, with_masks_before_loops
from jaxremat.trace.primal import read_primal


def test_unused_results_cost_nothing():
    """A carry that only feeds a result that nobody reads has no backward."""

    def loss(w, v):
        def body(carry, _):
            c, d = carry
            return (jnp.tanh(c @ w), jnp.sin(d @ v)), d

        (c, _), _ = lax.scan(body, (jnp.ones((2, 4)), jnp.ones((2, 4))), None, length=5)
        return jnp.sum(c)

    args = (array(4, 4), array(4, 4, seed=1))
    _, loop = only_loop(loss, args, (0, 1))
    assert loop.body.active_carry == loop.body.primal.cotangents_of == (0,)
    planned = decided(loss, args, (0, 1), 0.0)
    assert products(planned, *args, argnums=(0, 1)) <= products(loss, *args, argnums=(0, 1))


def test_what_depends_on_constants_alone_runs_before_the_loop():
    def loss(w):
        return jnp.sum(lax.scan(lambda c, _: (jnp.tanh(c @ (w @ w.T)), None), jnp.ones((2, 4)), None, length=50)[0])

    _, loop = only_loop(loss, (array(4, 4),))
    assert [eqn.primitive.name for eqn in loop.invariants.eqns].count("dot_general") == 1
    forward = loop.body.primal.jaxpr.eqns
    assert [eqn.primitive.name for eqn in forward].count("dot_general") == 1


def attention_over(tokens, masked):
    """A loss whose iterations compare positions for a mask, and are given one head or several."""

    def step(x, w):
        positions = jnp.arange(tokens)
        return masked(jnp.tanh(x @ w), positions[:, None] >= positions), None

    return lambda ws, x: jnp.sum(lax.scan(step, x, ws)[0])


def comparisons(jaxpr):
    return [eqn.primitive.name for eqn in jaxpr.eqns].count("ge")


def test_a_mask_that_several_heads_read_is_made_before_the_loop():
    """XLA:GPU goes over rows that lie apart where they share indices which their kernel compares."""
    over_heads = lambda h, mask: jax.nn.softmax(jnp.where(mask, h, -1e9)) + h
    primal = read_primal(attention_over(8, over_heads), (array(3, 8, 8), array(2, 8, 8)), 0, False)
    (loop,) = find(with_masks_before_loops(primal))
    assert comparisons(loop.invariants) == 1 and not comparisons(loop.body.primal.jaxpr)
    assert [v.aval.shape for v in loop.invariants.outvars] == [(8, 8)]
    (as_written,) = find(primal)
    assert not as_written.invariants.outvars and comparisons(as_written.body.primal.jaxpr) == 1


def test_a_mask_is_made_where_it_is_read_as_it_is():
    for masked in (lambda h, mask: jnp.where(mask, h, 0.0), lambda h, mask: h + jnp.sum(mask)):
        primal = read_primal(attention_over(8, masked), (array(3, 8, 8), array(8, 8)), 0, False)
        assert with_masks_before_loops(primal) is primal


def test_gradients_are_summed_in_the_precision_of_the_constant():
    """A weight cast to half precision inside the loop stays inside: its gradient is a sum of single floats."""

    def loss(w):
        body = lambda c, _: ((c.astype(jnp.bfloat16) @ w.astype(jnp.bfloat16)).astype(jnp.float32), None)
        return jnp.sum(lax.scan(body, jnp.ones((2, 4)), None, length=50)[0])

    assert not only_loop(loss, (array(4, 4),))[1].invariants.eqns


def test_equal_bodies_are_one():
    body = lambda c, w: (jnp.tanh(c @ w), None)

    def loss(ws):
        c, _ = lax.scan(body, jnp.ones((2, 4)), ws)
        return jnp.sum(lax.scan(body, c, ws)[0])

    first, second = loops_of(loss, (array(3, 4, 4),)).found
    assert first.body is second.body


def branch(fun):
    """A conditional that runs `fun` where its predicate does not hold."""
    return lambda w, x: jnp.sum(lax.cond(x[0, 0] > 0, lambda w, x: x, fun, w, x))


@pytest.mark.parametrize(
    ("fun", "branches"),
    [(lambda w, x: jnp.sin(x @ w) @ w, [0]), (lambda w, x: jnp.sin(x @ w), []), (lambda w, x: w, [])],
    ids=["three equations", "two", "none"],
)
def test_a_branch_is_a_loop_where_it_holds_anything_for_its_backward(fun, branches):
    found = find(read_primal(branch(fun), (array(4, 4), array(4, 4)), 0, False))
    assert [loop.branch for loop in found] == branches
    for loop in found:
        assert (loop.kind, loop.length, loop.repeats, loop.body.is_single) == ("cond", 1, False, True)


def test_what_no_gradient_passes_through_is_no_loop():
    def loss(w, x):
        count, _ = lax.scan(lambda c, row: (c + jnp.sum(row > 0), None), 0, x)
        return jnp.sum(w * x) + lax.stop_gradient(count.astype(jnp.float32))

    assert not find(read_primal(loss, (array(4, 4), array(4, 4)), 0, False))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_iterations_lie_where_a_transposition_took_them_from(axis):
    """Along the last axis they are copied: entries lie scattered there."""

    loss = lambda w, x: jnp.sum(
        lax.scan(lambda c, row: (jnp.tanh(c + row * w), c), x.sum(axis) * 0, jnp.moveaxis(x, axis, 0))[1]
    )
    (loop,) = find(read_primal(loss, (jnp.float32(0.1), array(3, 4, 5)), (0, 1), False))
    assert loop.scanned_axes in (((axis,),) if axis == 1 else ((), (0,)))
