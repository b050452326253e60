"""Blocks of an array inside a loop, and their derivatives, against plain slices."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.test_util import check_grads

from jaxremat.chunk.tiling.blocks import add_block, read_block


def loop_over_blocks(x):
    def step(state, i):
        x, total = state
        x, block = read_block(x, (i, 0 * i), (3, 2))
        return (x, add_block(total, jnp.sin(block) * block, (2 * i, i))), None

    return jax.lax.scan(step, (x, jnp.zeros((12, 6))), jnp.arange(4))[0][1]


def test_blocks_differentiate_in_every_mode():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(6, 2)), jnp.float32)
    check_grads(loop_over_blocks, (x,), order=2, atol=2e-2, rtol=2e-2, eps=1e-2)


def test_blocks_batch():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 6, 2)), jnp.float32)
    for f in (loop_over_blocks, jax.grad(lambda x: loop_over_blocks(x).sum())):
        np.testing.assert_allclose(jax.vmap(f)(x), jnp.stack([f(a) for a in x]), atol=1e-6)
    starts = jnp.arange(3)
    picked = jax.vmap(lambda x, i: read_block(x, (i, 0), (2, 2))[1], (None, 0))(x[0], starts)
    np.testing.assert_array_equal(picked, jnp.stack([x[0, i : i + 2] for i in starts]))
    added = jax.vmap(lambda x, i: add_block(x, jnp.ones((2, 2)), (i, 0)), (None, 0))(x[0], starts)
    np.testing.assert_array_equal(added[1], x[0].at[1:3].add(1.0))


def test_transposes_touch_blocks_only():
    jaxpr = str(jax.make_jaxpr(jax.grad(lambda x: loop_over_blocks(x).sum()))(jnp.ones((6, 2))))
    assert "add_block" in jaxpr and "read_block" in jaxpr
    assert "dynamic_update_slice" not in jaxpr
