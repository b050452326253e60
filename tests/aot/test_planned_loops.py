"""Budgets of planned loops are met by the compilers of devices that are not there."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import jaxremat
from jaxremat.compiled.compile import compile_gradient

pytestmark = pytest.mark.aot

LAYERS, WIDTH, ROWS = 12, 1024, 16384
WEIGHTS = (
    jax.ShapeDtypeStruct((LAYERS, WIDTH, 2 * WIDTH), jnp.bfloat16),
    jax.ShapeDtypeStruct((LAYERS, 2 * WIDTH, WIDTH), jnp.bfloat16),
)
X = jax.ShapeDtypeStruct((ROWS, WIDTH), jnp.bfloat16)


def block(x, weights):
    up, down = weights
    return x + jax.nn.gelu(jnp.sin(x) @ up) @ down, None


def scanned(weights, x):
    return jnp.mean(lax.scan(block, x, weights)[0].astype(jnp.float32) ** 2)


def unrolled(weights, x):
    for layer in range(LAYERS):
        x, _ = block(x, jax.tree.map(lambda w, layer=layer: w[layer], weights))
    return jnp.mean(x.astype(jnp.float32) ** 2)


@pytest.mark.parametrize(
    "loss,target", [(scanned, "tpu-v5e"), (scanned, "h200"), (unrolled, "h200")], ids=["tpu", "gpu", "gpu-unrolled"]
)
def test_a_budget_is_met_as_compiled_there(loss, target):
    plan = jaxremat.plan(loss, WEIGHTS, X, budget=0.6, target=target)
    assert plan.compiled.target == target
    assert plan.compiled.peak_bytes <= 0.6 * plan.baseline_peak_bytes
    assert plan.peak_bytes == pytest.approx(plan.compiled.peak_bytes, rel=0.3)


def attention(x, weights):
    """One head over the rows, in groups of 512, then a wide layer."""
    up, down = weights
    groups = x.reshape(-1, 512, WIDTH)
    scores = jnp.einsum("gqd,gkd->gqk", groups, groups) / WIDTH**0.5
    x = x + jnp.einsum("gqk,gkd->gqd", jax.nn.softmax(scores), groups).reshape(x.shape)
    return x + jax.nn.gelu(x @ up) @ down, None


def test_no_more_bytes_than_checkpoints_on_every_iteration():
    """What their author's checkpoints reach, a plan reaches too, in their time, and goes below."""

    def loss(weights, x, body=attention):
        return jnp.mean(lax.scan(body, x, weights)[0].astype(jnp.float32) ** 2)

    def by_hand(weights, x):
        return loss(weights, x, jax.checkpoint(attention, prevent_cse=False))

    hand = compile_gradient(by_hand, (WEIGHTS, X), target="h200")
    plan = jaxremat.plan(loss, WEIGHTS, X, budget=hand.peak_bytes, target="h200")
    assert plan.compiled.peak_bytes <= hand.peak_bytes
    assert plan.compiled.seconds <= hand.seconds
    lower = int(0.95 * hand.peak_bytes)
    assert jaxremat.plan(loss, WEIGHTS, X, budget=lower, target="h200").compiled.peak_bytes <= lower
