"""What decisions cost and save, how they split and nest, and what they refuse."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from loop_programs import applied, array, decided, decisions_of, loops_of, recurrence, split_price

from jaxremat.base.errors import EmissionError, PlanMismatchError
from jaxremat.loops.decision import LoopDecision
from jaxremat.loops.find import find, with_masks_before_loops
from jaxremat.trace import jaxpr as jaxprs
from jaxremat.trace.primal import read_primal


def products(fun, *args, argnums=0) -> int:
    """Matrix products that the gradient runs, trip counts multiplied."""

    def count(jaxpr) -> int:
        total = 0
        for eqn in jaxpr.eqns:
            inner = sum(map(count, jaxprs.subjaxprs(eqn)))
            total += inner * eqn.params.get("length", 1) + (eqn.primitive.name == "dot_general")
        return total

    return count(jax.make_jaxpr(jax.value_and_grad(fun, argnums))(*args))


def temp_bytes(fun, *args) -> int:
    return jax.jit(jax.value_and_grad(fun)).lower(*args).compile().memory_analysis().temp_size_in_bytes


def only_loop(fun, args, argnums=0):
    loops = loops_of(fun, args, argnums)
    (loop,) = loops.found
    return loops, loop


def mlp(length=64, width=64):
    """A deep network over stacked weights: per layer, the carry, a product and what is element-wise."""

    def loss(ws, x):
        def body(c, w):
            h = jnp.tanh(c @ w)
            return c + jnp.sin(h) * jnp.cos(h * h), None

        return jnp.sum(lax.scan(body, x, ws)[0])

    return loss, (array(length, width, width), array(512, width, seed=1))


def test_options_trade_bytes_for_seconds():
    loops, loop = only_loop(*mlp())
    options = loops.options(loop)
    held = [o.held_bytes + o.transient_bytes for o in options]
    seconds = [o.extra_seconds for o in options]
    assert len(options) >= 3 and seconds[0] == 0
    assert held == sorted(held, reverse=True) and seconds == sorted(seconds)
    slopes = -np.diff(seconds) / np.diff(held)
    assert (np.diff(slopes) >= -1e-12 * slopes[:-1]).all()  # convex


def test_prices_walk_the_hull():
    loops, loop = only_loop(*mlp())
    total = [loops.estimate(loop, float(price)) for price in 10.0 ** np.arange(-14, 0)]
    held = [o.held_bytes + o.transient_bytes for o in total]
    assert held == sorted(held, reverse=True) and held[-1] < held[0] / 10


def test_nesting_reaches_square_root_memory():
    """64 layers of 512 x 64 floats: all carries are 8 MiB; segments of 8 hold 8 + 8 of them at a time, 2 MiB."""
    loss, args = mlp()
    loops, loop = only_loop(loss, args)
    option = loops.options(loop)[-1]
    (piece,) = option.decision.pieces
    assert piece.inside and piece.length == 64
    assert option.held_bytes <= 2**21
    assert temp_bytes(applied(loss, args, 0, [option.decision]), *args) < temp_bytes(loss, *args) / 4


def test_a_corner_splits_the_loop():
    loss, args = mlp()
    loops, loop = only_loop(loss, args)
    decision = loops.estimate(loop, split_price(loops.options(loop))).decision
    assert 2 <= len(decision.pieces) <= 3
    assert decision.length == 64
    first, last = decision.pieces[0], decision.pieces[-1]
    assert first.inside or len(first.backward) > len(last.backward) or last.inside


def test_split_memory_lies_between_its_neighbours():
    loss, args = mlp()
    loops, loop = only_loop(loss, args)
    more, less = [temp_bytes(applied(loss, args, 0, [o.decision]), *args) for o in loops.options(loop)[:2]]
    corner = loops.options(loop)[:2]
    split = loops.estimate(loop, split_price(corner)).decision
    assert len(split.pieces) == 2
    assert less < temp_bytes(applied(loss, args, 0, [split]), *args) < more


@pytest.mark.parametrize("price", [0.0, 1e-9, 1e-2])
def test_json_round_trip(price):
    loss, args = recurrence()
    for decision in decisions_of(loss, args, 0, price):
        again = LoopDecision.from_json(json.loads(json.dumps(decision.to_json())))
        assert again == decision and hash(again) == hash(decision)


def test_decisions_are_deterministic():
    loss, args = recurrence()
    assert decisions_of(loss, args, 0, 1e-8) == decisions_of(loss, args, 0, 1e-8)


def test_a_decision_for_another_length_is_refused():
    loss, args = recurrence(8)
    decisions = decisions_of(loss, args, 0, 1e-2)
    longer, other = recurrence(9)
    with pytest.raises(PlanMismatchError, match="8 iterations meets a loop of 9"):
        applied(longer, other, 0, decisions)


def test_keeping_everything_recomputes_no_product():
    loss, args = recurrence()
    assert products(decided(loss, args, 0, 0.0), *args) == products(loss, *args)


def test_what_is_not_differentiated_costs_nothing():
    """The gradient for xs alone: no product for the gradient of either weight."""
    loss, args = recurrence()
    plain = products(loss, *args, argnums=1)
    assert products(decided(loss, args, 1, 0.0), *args, argnums=1) == plain
    assert plain < products(loss, *args)


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


def test_differentiating_what_was_not_planned_is_refused():
    loss, (w, xs) = recurrence()
    planned = decided(loss, (w, xs), 1, 1e-2)
    with pytest.raises(EmissionError, match="argnums"):
        jax.grad(planned)(w, xs)


def test_the_program_does_not_grow_with_the_length():
    def size(length):
        loss, args = recurrence(length)
        planned = decided(loss, args, 0, 1e-2)
        return len(str(jax.make_jaxpr(jax.grad(planned))(*args)).splitlines())

    assert size(4096) <= 1.5 * size(64)
