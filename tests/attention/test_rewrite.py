"""Attention as people write it: every form is found, replaced, and gives the same value and gradients."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxremat import attention
from jaxremat.chunk.rewriting.finding import Findings

BATCH, LENGTH, HEADS, DEPTH = 2, 12, 4, 8
CAUSAL = jnp.tril(jnp.ones((LENGTH, LENGTH), bool))
FORMS = {}


def form(function):
    FORMS[function.__name__] = function
    return function


def mix(weights, v):
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v)


def product(q, k):
    return jnp.einsum("bqhd,bkhd->bhqk", q, k)


@form
def plain(q, k, v):
    return mix(jax.nn.softmax(product(q, k)), v)


@form
def scaled_before(q, k, v):
    return mix(jax.nn.softmax(product(q / DEPTH**0.5, k)), v)


@form
def scaled_after(q, k, v):
    return mix(jax.nn.softmax(product(q, k) * DEPTH**-0.5), v)


@form
def additive_bias(q, k, v):
    return mix(jax.nn.softmax(product(q, k) + jnp.sin(q[:1, :, :1, :1].transpose(0, 2, 1, 3) * 2.0)), v)


@form
def additive_mask(q, k, v):
    return mix(jax.nn.softmax(product(q, k) + jnp.where(CAUSAL, 0.0, -1e9)), v)


@form
def where_mask_with_a_constant_that_matters(q, k, v):
    return mix(jax.nn.softmax(jnp.where(CAUSAL, product(q, k), -1.5)), v)


@form
def where_mask_at_the_end_of_float32(q, k, v):
    return mix(jax.nn.softmax(jnp.where(CAUSAL, product(q, k), jnp.finfo(jnp.float32).min)), v)


@form
def where_mask_at_minus_infinity(q, k, v):
    return mix(jax.nn.softmax(jnp.where(CAUSAL, product(q, k), -jnp.inf)), v)


@form
def fully_masked_row(q, k, v):
    return mix(jax.nn.softmax(jnp.where(CAUSAL.at[3].set(False), product(q, k), -1e30)), v)


@form
def mask_from_positions(q, k, v):
    position = jnp.arange(LENGTH)
    return mix(jax.nn.softmax(jnp.where(position[:, None] >= position, product(q, k), -1e30)), v)


@form
def mask_cut_from_a_larger_one(q, k, v):
    larger = jnp.tril(jnp.ones((1, 1, 32, 32), bool))
    return mix(jax.nn.softmax(jnp.where(larger[:, :, :LENGTH, :LENGTH], product(q, k), -1e10)), v)


@form
def alibi(q, k, v):
    position = jnp.arange(LENGTH, dtype=q.dtype)
    slopes = 2.0 ** -jnp.arange(1.0, HEADS + 1)
    return mix(jax.nn.softmax(product(q, k) - slopes[:, None, None] * jnp.abs(position[:, None] - position)), v)


@form
def soft_capped(q, k, v):
    return mix(jax.nn.softmax(5.0 * jnp.tanh(product(q, k) / 5.0)), v)


@form
def learned_temperature_per_head(q, k, v):
    return mix(jax.nn.softmax(product(q, k) * jnp.exp(q.mean((0, 1, 3)))[:, None, None]), v)


@form
def written_out(q, k, v):
    scores = product(q, k)
    weights = jnp.exp(scores - scores.max(-1, keepdims=True))
    return mix(weights / weights.sum(-1, keepdims=True), v)


@form
def written_out_without_maximum(q, k, v):
    weights = jnp.exp(product(q, k))
    return mix(weights / weights.sum(-1, keepdims=True), v)


@form
def upcast_to_float32(q, k, v):
    q, k, v = (x.astype(jnp.bfloat16) for x in (q, k, v))
    return mix(jax.nn.softmax(product(q, k).astype(jnp.float32)).astype(jnp.bfloat16), v).astype(jnp.float32)


@form
def heads_first(q, k, v):
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
    return (jax.nn.softmax(q @ k.swapaxes(-1, -2)) @ v).transpose(0, 2, 1, 3)


@form
def weights_with_keys_first(q, k, v):
    return jnp.einsum("bhkq,bkhd->bqhd", jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhkq", q, k), axis=2), v)


@form
def one_head_without_batch(q, k, v):
    q, k, v = q[0, :, 0], k[0, :, 0], v[0, :, 0]
    return jax.nn.softmax(q @ k.T) @ v


@form
def grouped_heads(q, k, v):
    q = q.reshape(BATCH, LENGTH, 2, 2, DEPTH)
    weights = jax.nn.softmax(jnp.einsum("bqkgd,bskd->bkgqs", q, k[:, :, :2]))
    return jnp.einsum("bkgqs,bskd->bqkgd", weights, v[:, :, :2])


@form
def repeated_heads(q, k, v):
    k, v = (jnp.repeat(x[:, :, :2], 2, axis=2) for x in (k, v))
    return mix(jax.nn.softmax(product(q, k)), v)


@form
def vmapped(q, k, v):
    one = lambda q, k, v: jax.nn.softmax(q @ k.T / DEPTH**0.5) @ v
    return jax.vmap(jax.vmap(one, in_axes=1, out_axes=1))(q, k, v)


@form
def jax_nn(q, k, v):
    return jax.nn.dot_product_attention(q, k, v, is_causal=True)


@form
def jax_nn_grouped(q, k, v):
    return jax.nn.dot_product_attention(q, k[:, :, :2], v[:, :, :2], bias=jnp.cos(q[:, :1, :, :1].swapaxes(1, 2)))


@form
def flax_linen(q, k, v):
    mask = nn.make_causal_mask(jnp.ones((BATCH, LENGTH)))
    return nn.dot_product_attention(q, k, v, mask=mask)


@form
def flax_module(q, k, v):
    module = nn.MultiHeadDotProductAttention(HEADS)
    x = q.reshape(BATCH, LENGTH, -1)
    params = module.init(jax.random.key(0), jnp.zeros((BATCH, LENGTH, HEADS * DEPTH)))
    return module.apply(params, x, k.reshape(x.shape), v.reshape(x.shape))


@form
def inside_jit(q, k, v):
    return jax.jit(plain)(q, k, v)


@form
def inside_checkpoint(q, k, v):
    return jax.checkpoint(plain)(q, k, v)


@form
def inside_scan(q, k, v):
    return jax.lax.scan(lambda x, _: (plain(x, k, v), None), q, None, length=2)[0]


@form
def inside_scan_of_checkpoint(q, k, v):
    return jax.lax.scan(jax.checkpoint(lambda x, _: (jax.jit(plain)(x, k, v), None)), q, None, length=2)[0]


@form
def inside_cond(q, k, v):
    return jax.lax.cond(q.sum() < 1e9, plain, lambda q, k, v: q, q, k, v)


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    return tuple(jnp.asarray(rng.normal(size=(BATCH, LENGTH, HEADS, DEPTH)), jnp.float32) for _ in range(3))


def chunked(fun):
    return attention.rewrite(fun, query_chunk_size=5, key_chunk_size=8)


def value_and_gradients(fun, inputs):
    loss = lambda *xs: jnp.sum(jnp.sin(fun(*xs)))
    return jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(*inputs)


@pytest.mark.parametrize("name", FORMS)
def test_found_and_equal(name, inputs):
    fun = FORMS[name]
    report = chunked(fun).explain(*inputs)
    assert [f.replaced for f in report] == [True], str(report)
    tolerance = 3e-2 if "upcast" in name else 2e-5
    for ours, theirs in zip(*map(jax.tree.leaves, (value_and_gradients(f, inputs) for f in (chunked(fun), fun)))):
        np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)


def test_weights_in_use_elsewhere_are_left(inputs):
    def returns_weights(q, k, v):
        weights = jax.nn.softmax(product(q, k))
        return mix(weights, v), weights

    (finding,) = chunked(returns_weights).explain(*inputs)
    assert not finding.replaced and "result of the function" in finding.reason
    for ours, theirs in zip(chunked(returns_weights)(*inputs), returns_weights(*inputs)):
        np.testing.assert_array_equal(ours, theirs)


def test_dropout_on_the_weights_is_left(inputs):
    def dropped(q, k, v):
        weights = jax.nn.softmax(product(q, k))
        return mix(weights * jax.random.bernoulli(jax.random.key(0), 0.5, weights.shape) / 0.5, v)

    assert not any(f.replaced for f in chunked(dropped).explain(*inputs))
    np.testing.assert_array_equal(chunked(dropped)(*inputs), dropped(*inputs))


@pytest.mark.parametrize(
    "not_a_softmax",
    [
        lambda e: e / e.sum(-2, keepdims=True),
        lambda e: e / e.sum(-1)[..., None, :],
        lambda e: e / e.sum((-1, -2), keepdims=True),
        lambda e: e / (2 + e.sum(-1, keepdims=True)),
        lambda e: e,
    ],
)
def test_what_only_looks_like_softmax_keeps_its_value(not_a_softmax, inputs):
    fun = lambda q, k, v: mix(not_a_softmax(jnp.exp(product(q, k))), v)
    assert not any(f.replaced for f in chunked(fun).explain(*inputs))
    np.testing.assert_array_equal(chunked(fun)(*inputs), fun(*inputs))


def test_a_shift_that_differs_between_keys_is_part_of_the_scores(inputs):
    def shifted(q, k, v):
        scores = product(q, k)
        weights = jnp.exp(scores - jnp.maximum(scores.max(-1, keepdims=True), 2 * scores))
        return mix(weights / weights.sum(-1, keepdims=True), v)

    np.testing.assert_allclose(chunked(shifted)(*inputs), shifted(*inputs), atol=2e-5)


def test_default_chunks_leave_small_scores_alone(inputs):
    (finding,) = attention.rewrite(plain).explain(*inputs)
    assert finding.reason == "the scores fit in one tile"
    assert finding.large_bytes == 4 * BATCH * HEADS * LENGTH**2
    assert "test_rewrite.py" in finding.where


def test_find_reads_a_jaxpr(inputs):
    report = attention.find(jax.make_jaxpr(inside_scan_of_checkpoint)(*inputs))
    assert isinstance(report, Findings) and [f.shape for f in report] == [(BATCH, HEADS, LENGTH, LENGTH)]


@pytest.mark.parametrize("transform", [jax.vmap, jax.jit, lambda f: jax.vmap(jax.grad(lambda *x: f(*x).sum()))])
def test_what_is_rewritten_transforms_as_before(transform, inputs):
    stacked = [jnp.stack([x, 2 * x]) for x in inputs]
    ours, theirs = (
        transform(f)(*stacked) if transform is not jax.jit else transform(f)(*inputs) for f in (chunked(plain), plain)
    )
    np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_forward_over_reverse(inputs):
    q, k, v = (x[:1, :, :1, :2] for x in inputs)
    hessian = lambda f: jax.hessian(lambda q: jnp.sum(f(q, k, v) ** 2))(q)
    ours, theirs = hessian(chunked(plain)), hessian(plain)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_flags_and_keywords_pass_through(inputs):
    def fun(q, k, v, kind, *, causal=False):
        assert kind == "self"
        scores = product(q, k)
        return mix(jax.nn.softmax(jnp.where(CAUSAL, scores, -1e30) if causal else scores), v)

    np.testing.assert_allclose(chunked(fun)(*inputs, "self", causal=True), fun(*inputs, "self", causal=True), atol=2e-5)


def test_memory_of_an_unedited_function():
    # Scores [8, 2048, 2048] in float32 are 128 MiB; a tile holds 2^20 of them, 4 MiB, and its exponential another 4.
    shape = jax.ShapeDtypeStruct((1, 2048, 8, 64), jnp.float32)
    temp_bytes = lambda f: jax.jit(f).lower(shape, shape, shape).compile().memory_analysis().temp_size_in_bytes
    assert temp_bytes(attention.rewrite(plain)) < 40 * 2**20 < 128 * 2**20 <= temp_bytes(plain)
