"""What enters the barriers of a scheduled step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import step_programs
from step_programs import copied, numbers, peak_bytes

import jaxremat


def dropping(weights, x, key):
    """Gradient descent on layers each of which drops a tenth of what it makes."""

    def loss(weights):
        h, drawn = x, key
        for w in weights:
            drawn, now = jax.random.split(drawn)
            h = h + jnp.where(jax.random.bernoulli(now, 0.9, h.shape), jnp.tanh(h @ w), 0.0)
        return (h**2).mean()

    value, grads = jax.value_and_grad(loss)(weights)
    return jax.tree.map(lambda w, g: w - 0.1 * g, weights, grads), value


def dropping_in_branches(weights, x, key):
    """The same in the branch of a conditional."""
    return jax.lax.cond(x[0, 0] > -1e3, dropping, lambda weights, x, key: (weights, 0.0), weights, x, key)


@pytest.mark.parametrize(("step", "raw"), [(dropping, False), (dropping, True), (dropping_in_branches, False)])
def test_masks_that_are_drawn_again_do_not_pile_up(step, raw):
    """A key waits behind the barrier like any array: a compiler that could draw early would hold all masks."""
    key = jax.random.PRNGKey(7) if raw else jax.random.key(7)
    args = step_programs._weights(8, 64), step_programs._data(2048, 64), key
    planned = jaxremat.jit(step, budget=0.5, donate_argnums=0, verify="replay")
    compiled = planned.lower(*args).compile()
    assert peak_bytes(compiled) <= 1.05 * planned.plan(*args).peak_bytes
    expected = numbers(jax.jit(step)(*args))
    for mine, other in zip(numbers(compiled(*copied(args))), expected, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-6)


BATCH, TOKENS, HEADS, FEATURES = 8, 96, 4, 8


def attending(weights, x):
    """Gradient descent on layers of attention."""

    def loss(weights):
        h = x
        for w in weights:
            queries, keys, values = (jnp.einsum("btc,chd->bthd", h, own) for own in w)
            scores = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", queries, keys))
            h = h + jnp.einsum("bhqk,bkhd->bqhd", scores, values).reshape(h.shape)
        return (h**2).mean()

    value, grads = jax.value_and_grad(loss)(weights)
    return jax.tree.map(lambda w, g: w - 0.1 * g, weights, grads), value


def attention_planned_for(target):
    """The step within half of its bytes, and its arguments."""
    width = HEADS * FEATURES
    weights = step_programs._weights(4 * 3, width)
    layers = [[w.reshape(width, HEADS, FEATURES) for w in weights[i : i + 3]] for i in range(0, len(weights), 3)]
    args = layers, step_programs._data(BATCH * TOKENS, width).reshape(BATCH, TOKENS, width)
    return jaxremat.jit(attending, budget=0.5, target=target, verify="replay"), args


def turned_at_barriers(planned, args):
    """How many values pass barriers as [batch, heads and features, tokens]."""
    barriers = [eqn for eqn in planned.trace(*args).jaxpr.eqns if eqn.primitive.name == "optimization_barrier"]
    assert barriers
    return sum(v.aval.shape == (BATCH, HEADS * FEATURES, TOKENS) for eqn in barriers for v in eqn.invars)


def test_on_gpus_what_products_of_batches_read_waits_as_they_agree_on():
    """XLA:GPU wrote queries a second time where they waited as they are written."""
    planned, args = attention_planned_for("h200")
    assert turned_at_barriers(planned, args) >= 4
    assert not turned_at_barriers(*attention_planned_for("cpu"))
    for mine, other in zip(numbers(planned(*args)), numbers(jax.jit(attending)(*args)), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-6)


def test_over_a_mesh_all_passes_as_it_is():
    planned, (layers, x) = attention_planned_for("h200")
    mesh = jax.sharding.AbstractMesh((4,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.NamedSharding(mesh, jax.P("batch"))
    x = jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharded)
    assert not planned.plan(layers, x).outcome.script.orders


def test_a_plan_from_a_file_turns_the_same_values(tmp_path):
    planned, args = attention_planned_for("h200")
    planned.plan(*args).save(tmp_path / "plan.json")
    read, _ = attention_planned_for("h200")
    read.load_plan(tmp_path / "plan.json", *args)
    assert str(read.trace(*args).jaxpr) == str(planned.trace(*args).jaxpr)


def attending_to_the_past(weights, x):
    """Gradient descent on layers of attention to what lies before."""

    def loss(weights):
        h = x
        for w in weights:
            queries, keys, values = (jnp.einsum("btc,chd->bthd", h, own) for own in w)
            h = h + jax.nn.dot_product_attention(queries, keys, values, is_causal=True).reshape(h.shape)
        return (h**2).mean()

    value, grads = jax.value_and_grad(loss)(weights)
    return jax.tree.map(lambda w, g: w - 0.1 * g, weights, grads), value


def test_masks_of_a_step_are_written_once_where_rows_run_in_one_kernel():
    """Forward and backward read them behind one barrier; a compiler for CPUs makes them where they are read."""
    draw = np.random.default_rng(2).standard_normal
    weights = [
        tuple(jnp.asarray(0.3 * draw((HEADS * FEATURES, HEADS, FEATURES)), jnp.float32) for _ in "qkv") for _ in "12"
    ]
    x = jnp.asarray(draw((BATCH, TOKENS, HEADS * FEATURES)), jnp.float32)
    expected = numbers(jax.jit(attending_to_the_past)(weights, x))
    for target, barriers_of_masks in (("cpu", 0), ("h200", 1)):
        planned = jaxremat.jit(attending_to_the_past, budget=0.7, verify="replay", target=target)
        eqns = planned.trace(weights, x).jaxpr.eqns
        barriers = [eqn for eqn in eqns if eqn.primitive.name == "optimization_barrier"]
        masks = [eqn for eqn in barriers if any(v.aval.dtype == bool for v in eqn.invars)]
        assert len(masks) == barriers_of_masks and len(barriers) > barriers_of_masks
        for mine, other in zip(numbers(planned(weights, x)), expected, strict=True):
            np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-5)
