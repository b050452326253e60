"""Segments: contiguous pieces in checkpoints of their own; plain JAX, so every kind of differentiation works."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import jaxremat


def loss(ws, x, mask):
    weight = jnp.where(mask, 1.0, 0.5)
    for w in ws:
        x = jnp.tanh(x @ w) * weight
    return jnp.sum(x**2)


ARGS = (
    [jnp.asarray(np.random.default_rng(i).normal(size=(16, 16)) / 4, jnp.float32) for i in range(10)],
    jnp.asarray(np.random.default_rng(12).normal(size=(256, 16)), jnp.float32),
    jnp.asarray(np.random.default_rng(13).normal(size=(256, 1)) > 0),
)


@pytest.fixture(scope="module", params=["segments", "names"])
def planned(request):
    return jaxremat.plan(loss, *ARGS, budget=0.75, emit=request.param).apply(loss)


def test_gradients_in_every_mode(planned):
    few = ([w[:, :] for w in ARGS[0]], ARGS[1])
    check_grads(lambda ws: planned(ws, few[1], ARGS[2]) / 256, (few[0],), order=1, modes=["fwd", "rev"], rtol=2e-2)
    tangents = [jnp.ones_like(w) for w in ARGS[0]]
    along = lambda f: jax.jvp(jax.grad(f), ARGS[:1] + ARGS[1:], (tangents, jnp.zeros_like(ARGS[1]), _zero(ARGS[2])))[1]
    for a, b in zip(jax.tree.leaves(along(planned)), jax.tree.leaves(along(loss)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)


def test_under_jit_and_vmap(planned):
    stacked = jnp.stack([ARGS[1], -ARGS[1]])
    run = lambda f: jax.jit(jax.vmap(jax.grad(f), in_axes=(None, 0, None)))(ARGS[0], stacked, ARGS[2])
    for a, b in zip(jax.tree.leaves(run(planned)), jax.tree.leaves(run(loss)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_compiled_peak_is_within_the_budget(planned):
    plan = jaxremat.plan(loss, *ARGS, budget=0.7, emit="segments")
    memory = jax.jit(jax.value_and_grad(plan.apply(loss))).lower(*ARGS).compile().memory_analysis()
    peak = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    assert peak <= plan.budget_bytes == int(0.7 * plan.baseline_peak_bytes)


def _zero(mask):
    return np.zeros(mask.shape, jax.dtypes.float0)
