"""What decisions cost and save, how they split and nest, and what they refuse."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from loop_programs import applied, array, decisions_of, only_loop, recurrence, split_price


def temp_bytes(fun, *args) -> int:
    return jax.jit(jax.value_and_grad(fun)).lower(*args).compile().memory_analysis().temp_size_in_bytes


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


def test_decisions_are_deterministic():
    loss, args = recurrence()
    assert decisions_of(loss, args, 0, 1e-8) == decisions_of(loss, args, 0, 1e-8)
