"""Rewriting and following weights inside checkpoints, in the form that each setting of JAX_REMAT3 gives them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxremat import attention, chunk
from jaxremat.compact import CompAct
from jaxremat.trace.jaxpr import subjaxprs

LENGTH, DEPTH, VOCABULARY = 256, 8, 512
SIZES = {"query_chunk_size": 64, "key_chunk_size": 64}


pytestmark = pytest.mark.usefixtures("remat3")


def attend(x):
    weights = jax.nn.softmax(jnp.einsum("bqd,bkd->bqk", x, x))
    return jnp.einsum("bqk,bkd->bqd", weights, x)


def doubled_gradient(x):
    """x, whose gradient is doubled."""
    return x


doubled_gradient = jax.custom_vjp(doubled_gradient)
doubled_gradient.defvjp(lambda x: (x, None), lambda _, g: (2 * g,))

saving = jax.checkpoint_policies.save_only_these_names("kept")


def in_checkpoint(x):
    return jax.checkpoint(lambda x: attend(x).sum())(x)


def in_nested_checkpoints(x):
    inner = jax.checkpoint(lambda x: jnp.sin(attend(x)))
    return jax.checkpoint(lambda x: inner(2 * x).sum())(x)


def in_jit_in_checkpoint(x):
    return jax.checkpoint(lambda x: jax.jit(attend)(x).sum(), policy=saving)(x)


def in_checkpoint_in_scan(x):
    step = jax.checkpoint(lambda x, _: (jnp.sin(attend(x)), None), prevent_cse=False)
    return jax.lax.scan(step, x, None, length=3)[0].sum()


def beside_a_rule_in_checkpoint(x):
    return jax.checkpoint(lambda x: (attend(doubled_gradient(jnp.sin(x))) ** 2).sum())(x)


def beside_a_name_in_checkpoint(x):
    named = lambda x: attend(jax.ad_checkpoint.checkpoint_name(jnp.sin(x), "kept"))
    return jax.checkpoint(lambda x: named(x).sum(), policy=saving)(x)


def in_cond_in_checkpoint(x):
    return jax.checkpoint(lambda x: jax.lax.cond(x.sum() > 0, attend, jnp.sin, x).sum())(x)


PROGRAMS = [
    in_checkpoint,
    in_nested_checkpoints,
    in_jit_in_checkpoint,
    in_checkpoint_in_scan,
    beside_a_rule_in_checkpoint,
    beside_a_name_in_checkpoint,
    in_cond_in_checkpoint,
]


@pytest.mark.parametrize("fun", PROGRAMS, ids=lambda f: f.__name__)
def test_attention_inside_checkpoints(fun):
    x = jax.random.normal(jax.random.key(0), (1, LENGTH, DEPTH))
    ours = attention.rewrite(fun, **SIZES)
    assert [finding.replaced for finding in ours.explain(x)] == [True]
    assert not has_shape(jax.make_jaxpr(jax.grad(ours))(x), (1, LENGTH, LENGTH))
    for got, wanted in zip(*(jax.jit(jax.value_and_grad(f))(x) for f in (ours, fun))):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())


def test_gradients_of_gradients_inside_a_checkpoint():
    x = jax.random.normal(jax.random.key(0), (1, 32, DEPTH)) / 2
    norm = lambda f: jax.jit(jax.grad(lambda x: (jax.grad(f)(x) ** 2).sum()))(x)
    ours = attention.rewrite(in_checkpoint, query_chunk_size=16, key_chunk_size=16)
    np.testing.assert_allclose(norm(ours), norm(in_checkpoint), rtol=1e-3, atol=1e-4)


def test_the_checkpoint_keeps_its_policy():
    x = jnp.ones((1, LENGTH, DEPTH))
    ours = attention.rewrite(beside_a_name_in_checkpoint, **SIZES)
    kept = [value.shape for value in jax.tree.leaves(jax.vjp(ours, x)[1])]
    assert kept.count((1, LENGTH, DEPTH)) == 2  # the argument and the name


@pytest.mark.parametrize("policy", [None, saving], ids=["nothing", "names"])
def test_loss_head_inside_a_checkpoint(policy):
    rng = np.random.default_rng(0)
    hidden, embedding = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((4, 64, 16), (16, VOCABULARY)))
    labels = jnp.asarray(rng.integers(0, VOCABULARY, (4, 64)))

    def loss(hidden, embedding):
        token_loss = lambda h, e: optax.softmax_cross_entropy_with_integer_labels(h @ e, labels)
        return jax.checkpoint(token_loss, policy=policy)(jnp.sin(hidden), embedding).mean()

    ours = chunk.rewrite(loss, token_chunk_size=32)
    assert [finding.replaced for finding in ours.explain(hidden, embedding)] == [True]
    both = (jax.jit(jax.value_and_grad(f, (0, 1)))(hidden, embedding) for f in (ours, loss))
    for got, wanted in zip(*map(jax.tree.leaves, both)):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        y = nn.MultiHeadDotProductAttention(num_heads=1)(nn.LayerNorm()(x))
        return x + y, None


def test_attention_of_scanned_remat_modules():
    layers = nn.scan(
        nn.remat(Block, prevent_cse=False), variable_axes={"params": 0}, split_rngs={"params": True}, length=2
    )()
    x = jax.random.normal(jax.random.key(1), (1, LENGTH, DEPTH))
    params = layers.init(jax.random.key(0), x, None)
    loss = lambda params: (layers.apply(params, x, None)[0] ** 2).mean()
    ours = attention.rewrite(loss, **SIZES)
    assert [finding.replaced for finding in ours.explain(params)] == [True]
    assert not has_shape(jax.make_jaxpr(jax.grad(ours))(params), (1, 1, LENGTH, LENGTH))
    both = (jax.jit(jax.value_and_grad(f))(params) for f in (ours, loss))
    for got, wanted in zip(*map(jax.tree.leaves, both)):
        np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("depth", [1, 2])
def test_weights_are_followed_into_checkpoints(depth):
    layer = lambda p, x: jnp.tanh(x @ jax.jit(lambda w: w.T)(p["kernel"]).T)
    for _ in range(depth):
        layer = jax.checkpoint(layer)
    loss = lambda p, x: (layer(p["layer"], x) ** 2).mean()
    params = {"layer": {"kernel": jax.random.normal(jax.random.key(0), (16, 16))}}
    x = jax.random.normal(jax.random.key(1), (32, 16))
    method = CompAct(loss, optax.sgd(1.0), rank=4)
    state = method.init(params, x)
    after, metrics = method.step(state, x)
    np.testing.assert_allclose(metrics["loss"], loss(params, x), rtol=1e-5)
    assert state.compressions[0].in_axes == (0,)
    assert np.abs(after.params["layer"]["kernel"] - params["layer"]["kernel"]).max() > 0


def has_shape(jaxpr, shape):
    """Whether any equation, inner ones included, makes a value of this shape."""
    return any(
        any(getattr(v.aval, "shape", None) == shape for v in eqn.outvars)
        or any(has_shape(body, shape) for body in subjaxprs(eqn))
        for eqn in jaxpr.eqns
    )
