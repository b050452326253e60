"""The library promotes no rank and no dtype in silence: its public paths run where JAX refuses both."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxremat
from jaxremat import attention, chunk
from jaxremat.compact import CompAct

W, X = 0.1 * jnp.ones((32, 32)), jnp.linspace(-1.0, 1.0, 256 * 32).reshape(256, 32)


def layers(weights, x):
    for w in weights:
        x = x + jnp.tanh(x @ w)
    return jnp.mean(x * x)


def masked(weights, x):
    for w in weights:
        x = jnp.where(x @ w > jnp.zeros_like(x), x @ w, 0.0)
    return jnp.mean(x * x)


def scanned(weights, x):
    return jnp.mean(jax.lax.scan(lambda x, w: (x + jnp.tanh(x @ w), None), x, weights)[0] ** 2)


def branched(weights, x):
    return jax.lax.cond(x[0, 0] > 0, lambda: layers(weights, x), lambda: masked(weights, x))


def brain(weights, x):
    half = [w.astype(jnp.bfloat16) for w in weights]
    return layers(half, x.astype(jnp.bfloat16)).astype(jnp.float32)


def agree(fun, planned, *args):
    for plain, ours in zip(*(jax.tree.leaves(jax.jit(jax.value_and_grad(f))(*args)) for f in (fun, planned))):
        np.testing.assert_allclose(ours, plain, rtol=2e-2 if fun is brain else 1e-4, atol=1e-6)


PROGRAMS = {"layers": layers, "masked": masked, "scanned": scanned, "branched": branched, "bfloat16": brain}


@pytest.mark.parametrize("name", PROGRAMS)
def test_schedules(name):
    fun = PROGRAMS[name]
    weights = jnp.stack([W] * 6) if fun is scanned else [W] * 6
    agree(fun, jaxremat.remat(fun, budget="least"), weights, X)


@pytest.mark.parametrize("emit", ["names", "segments"])
def test_checkpoints(emit):
    plan = jaxremat.plan(layers, [W] * 6, X, budget="least", emit=emit, verify="replay")
    agree(layers, plan.apply(layers), [W] * 6, X)


@pytest.mark.parametrize("solver", ["fastsa", "chen"])
def test_solvers_of_graphs(solver):
    plan = jaxremat.plan(layers, [W] * 4, X, budget=0.8, solver=solver, verify="replay")
    assert plan.check_grads([W] * 4, X).largest_difference < 1e-4


def test_steps():
    optimizer = optax.sgd(1e-2, momentum=0.9)

    def step(weights, state, x):
        value, grads = jax.value_and_grad(layers)(weights, x)
        updates, state = optimizer.update(grads, state, weights)
        return optax.apply_updates(weights, updates), state, value

    args = [W] * 6, optimizer.init([W] * 6), X
    ours, plain = jaxremat.jit(step, budget="least", verify="replay")(*args), jax.jit(step)(*args)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [{}, {"is_causal": True}, {"local_window_size": 9}, {"bias": True}, {"mask": True, "query_seq_lengths": True}],
)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_attention(options, dtype):
    query, key, value = (jax.random.normal(jax.random.key(i), (1, 64, 2, 8), dtype) for i in range(3))
    shape = (1, 1, 64, 64)
    lengths = jnp.full(1, 40, jnp.int8)
    arrays = {"bias": jnp.ones(shape), "mask": jnp.tril(jnp.ones(shape, bool)), "query_seq_lengths": lengths}
    given = {name: arrays.get(name, setting) for name, setting in options.items()}
    tiles = {"query_chunk_size": 16, "key_chunk_size": 16}
    ours = lambda q: jnp.sum(attention.dot_product_attention(q, key, value, **given, **tiles).astype(jnp.float32))
    run = jax.grad(ours) if dtype == jnp.float32 else ours  # JAX's transpose of a bfloat16 contraction mixes dtypes
    assert jnp.isfinite(run(query)).all()


def test_attention_that_is_found():
    def attended(query, key, value):
        weights = jax.nn.softmax(jnp.einsum("bqd,bkd->bqk", query, key))
        return jnp.sum(jnp.einsum("bqk,bkd->bqd", weights, value))

    query, key, value = (jax.random.normal(jax.random.key(i), (2, 64, 8)) for i in range(3))
    chunked = attention.rewrite(attended, query_chunk_size=16, key_chunk_size=16)
    agree(attended, chunked, query, key, value)


def test_chunks():
    hidden, embedding = jax.random.normal(jax.random.key(0), (64, 8)), jax.random.normal(jax.random.key(1), (8, 50))
    labels = jnp.arange(64, dtype=jnp.int32) % 50
    sizes = {"token_chunk_size": 16, "vocabulary_chunk_size": 16}
    bias = jnp.ones(50, jnp.bfloat16)
    loss = lambda h: jnp.mean(chunk.softmax_cross_entropy(h, embedding, labels, bias=bias, **sizes))
    assert jnp.isfinite(jax.grad(loss)(hidden)).all()
    rows = chunk.map_chunks(lambda x: jnp.tanh(x @ embedding), 16)
    assert jnp.isfinite(jax.grad(lambda h: jnp.sum(rows(h)))(hidden)).all()
    head = lambda h: jnp.mean(optax.softmax_cross_entropy_with_integer_labels(h @ embedding, labels))
    agree(head, chunk.rewrite(head, token_chunk_size=16), hidden)


def test_compressed_activations():
    compact = CompAct(layers, optax.sgd(1e-2, momentum=0.9), rank=0.5, refresh_every=2)
    state = compact.init([W] * 3)
    for _ in range(3):
        state, metrics = jax.jit(compact.step)(state, X)
    assert jnp.isfinite(metrics["loss"])
