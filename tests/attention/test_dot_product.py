"""Against jax.nn.dot_product_attention: every option, any shape, every derivative, and the memory promised."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from jaxremat.attention import dot_product_attention
from jaxremat.base.errors import ArgumentError

CHUNKS = {"query_chunk_size": 4, "key_chunk_size": 5}
MIB = 2**20


def arrays(batch=2, queries=9, keys=13, heads=4, key_heads=4, depth=8, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    shapes = [(batch, queries, heads, depth), (batch, keys, key_heads, depth), (batch, keys, key_heads, depth)]
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def random_mask(*shape):
    return jnp.asarray(np.random.default_rng(1).random(shape) > 0.4)


def random_bias(*shape):
    return jnp.asarray(np.random.default_rng(2).normal(size=shape), jnp.float32)


def assert_agrees(inputs, atol=3e-5, **options):
    """Value, residual, and gradients for q, k, v and the bias."""
    bias = options.pop("bias", None)

    def loss(attend, q, k, v, bias, **more):
        out = attend(q, k, v, bias=bias, **options, **more).astype(jnp.float32)
        return jnp.sum(jnp.sin(out)), out

    argnums = (0, 1, 2) if bias is None else (0, 1, 2, 3)
    run = lambda attend, **more: jax.jit(
        jax.value_and_grad(lambda *a: loss(attend, *a, **more), argnums, has_aux=True),
        compiler_options={"xla_backend_optimization_level": 0},
    )(*inputs, bias)
    ours, theirs = run(dot_product_attention, **CHUNKS), run(jax.nn.dot_product_attention)
    for got, wanted in zip(*map(jax.tree.leaves, (ours, theirs))):
        assert got.dtype == wanted.dtype
        np.testing.assert_allclose(got.astype(jnp.float32), wanted.astype(jnp.float32), atol=atol, rtol=atol)


OPTIONS = {
    "plain": {},
    "causal": {"is_causal": True},
    "scale": {"scale": 0.3},
    "window": {"local_window_size": 2},
    "window, left and right": {"local_window_size": (3, 1)},
    "window, causal": {"local_window_size": (3, 1), "is_causal": True},
    "key lengths": {"key_value_seq_lengths": jnp.array([3, 13], jnp.int32)},
    "both lengths": {
        "query_seq_lengths": jnp.array([9, 2], jnp.int32), "key_value_seq_lengths": jnp.array([0, 7], jnp.int32),
    },
    "mask and bias and causal": {"mask": random_mask(2, 4, 9, 13), "bias": random_bias(2, 4, 9, 13), "is_causal": True},
    "bias of lower rank": {"bias": random_bias(9, 13)},
    "fully masked rows": {"mask": random_mask(2, 4, 9, 13).at[:, :, 3].set(False)},
}  # fmt: skip


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_agrees_with_jax(name):
    options = dict(OPTIONS[name])
    if name == "bias of lower rank":  # jax.nn accepts it since it pads ranks; so do we
        options["bias"] = options["bias"][None]
    assert_agrees(arrays(), **options)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 1, 1, 13), (1, 4, 9, 1), (2, 4, 1, 13), (1, 1, 9, 13)])
def test_broadcast_bias_and_mask(shape):
    assert_agrees(arrays(), bias=random_bias(*shape), mask=random_mask(*shape))


@pytest.mark.parametrize("key_heads", [1, 2])
def test_grouped_heads(key_heads):
    assert_agrees(
        arrays(key_heads=key_heads), bias=random_bias(2, 4, 9, 13), mask=random_mask(1, 4, 9, 13), is_causal=True
    )


def test_bfloat16():
    assert_agrees(arrays(dtype=jnp.bfloat16), atol=6e-2, is_causal=True)


def test_float16():
    # jax.nn asks for a product that XLA:CPU does not have, so the reference runs in float32.
    run = lambda attend, dtype: jax.value_and_grad(lambda q, k, v: jnp.sum(jnp.sin(attend(q, k, v))), (0, 1, 2))(
        *arrays(dtype=dtype)
    )
    ours = run(lambda *a: dot_product_attention(*a, **CHUNKS).astype(jnp.float32), jnp.float16)
    for got, wanted in zip(*map(jax.tree.leaves, (ours, run(jax.nn.dot_product_attention, jnp.float32)))):
        np.testing.assert_allclose(got.astype(jnp.float32), wanted, atol=2e-2)


@settings(max_examples=6, deadline=None)
@given(
    batch=st.integers(1, 2), queries=st.integers(1, 12), keys=st.integers(1, 12), heads=st.sampled_from([1, 2, 3, 6]),
    groups=st.sampled_from([1, 3]), query_chunk=st.integers(1, 13), key_chunk=st.integers(1, 13),
    causal=st.booleans(),
)  # fmt: skip
def test_any_shape(batch, queries, keys, heads, groups, query_chunk, key_chunk, causal):
    q, k, v = arrays(batch, queries, keys, heads * groups, heads, 4)
    ours = dot_product_attention(q, k, v, is_causal=causal, query_chunk_size=query_chunk, key_chunk_size=key_chunk)
    np.testing.assert_allclose(ours, jax.nn.dot_product_attention(q, k, v, is_causal=causal), atol=1e-5)


def test_without_batch():
    q, k, v = (x[0] for x in arrays())
    ours = dot_product_attention(q, k, v, mask=random_mask(4, 9, 13), **CHUNKS)
    np.testing.assert_allclose(ours, jax.nn.dot_product_attention(q, k, v, mask=random_mask(4, 9, 13)), atol=1e-5)


def test_log_sums_agree_with_jax_and_have_no_gradient():
    options = {"mask": random_mask(2, 4, 9, 13).at[:, :, 3].set(False), "return_residual": True}
    ours = dot_product_attention(*arrays(), **options, **CHUNKS)
    theirs = jax.nn.dot_product_attention(*arrays(), **options)
    for got, wanted in zip(ours, theirs):
        np.testing.assert_allclose(got, wanted, atol=1e-5, rtol=1e-6)
    gradient = jax.grad(lambda q, k, v: dot_product_attention(q, k, v, **options)[1].sum())(*arrays())
    assert not gradient.any()


def test_every_derivative():
    q, k, v = arrays(1, 3, 5, 2, 1, 4)
    bias = random_bias(1, 2, 1, 5)
    attend = lambda q, k, v, bias: dot_product_attention(
        q, k, v, bias, mask=random_mask(1, 2, 3, 5).at[0, 0, 1].set(False), query_chunk_size=2, key_chunk_size=3
    )
    check_grads(jax.jit(attend), (q, k, v, bias), order=2, atol=2e-2, rtol=2e-2, eps=1e-2)


def test_gradient_of_traced_scale():
    q, k, v = arrays()
    gradient = lambda attend: jax.grad(lambda s: jnp.sum(jnp.sin(attend(q, k, v, scale=s))))(jnp.float32(0.3))
    np.testing.assert_allclose(gradient(dot_product_attention), gradient(jax.nn.dot_product_attention), rtol=1e-4)


def test_vmap_over_bias_only():
    q, k, v = arrays()
    bias = random_bias(3, 1, 4, 1, 13)
    run = lambda attend: jax.vmap(jax.grad(lambda b: jnp.sum(jnp.sin(attend(q, k, v, b)))))(bias)
    np.testing.assert_allclose(
        run(lambda *a: dot_product_attention(*a, **CHUNKS)), run(jax.nn.dot_product_attention), atol=1e-5
    )


def test_scores_beyond_exp():
    q, k, v = arrays()
    out, gradient = jax.value_and_grad(lambda q: jnp.sum(dot_product_attention(q * 1e3, k * 1e3, v, **CHUNKS)))(q)
    assert jnp.isfinite(out) and jnp.isfinite(gradient).all()


def test_signature_is_that_of_jax_nn():
    ours, theirs = (inspect.signature(f).parameters for f in (dot_product_attention, jax.nn.dot_product_attention))
    assert [p for p in ours if not p.endswith("chunk_size")] == list(theirs)
    for name, parameter in theirs.items():
        assert (ours[name].default, ours[name].kind) == (parameter.default, parameter.kind)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"implementation": "cudnn"}, "xla"),
        ({"mask": jnp.ones((2, 4, 9, 13))}, "mask must be bool"),
        ({"bias": jnp.ones((3, 4, 9, 13))}, "does not broadcast"),
        ({"query_seq_lengths": jnp.ones(3, jnp.int32)}, "query_seq_lengths must be"),
        ({"query_chunk_size": 0}, "at least 1"),
    ],
)
def test_other_shapes_and_options_are_refused(change, message):
    with pytest.raises(ArgumentError, match=message):
        dot_product_attention(*arrays(), **change)


def temp_bytes(fun, *args):
    return jax.jit(fun).lower(*args).compile().memory_analysis().temp_size_in_bytes


def of_sum(attend, **options):
    return jax.grad(lambda q, k, v: jnp.sum(attend(q, k, v, **options).astype(jnp.float32)), (0, 1, 2))


def test_memory_promise():
    # Scores [16384, 16384] in float32 are 1 GiB. Ours: a tile of 2^20 (4 MiB) and its exponential, and float32 sums
    # [16384, 64] (4 MiB); with gradients a few more of each. 59x and 32x are the paper's ratios.
    s = jax.ShapeDtypeStruct((1, 16384, 1, 64), jnp.float32)
    assert temp_bytes(dot_product_attention, s, s, s) < 1024 * MIB / 59
    assert temp_bytes(of_sum(dot_product_attention), s, s, s) < 2048 * MIB / 32


def test_a_bias_and_a_mask_are_not_broadcast():
    # Broadcast to [1, 8, 2048, 2048] the bias would be 128 MiB and the mask 32; they hold 2048 entries each.
    s = jax.ShapeDtypeStruct((1, 2048, 8, 64), jnp.float32)
    bias, mask = jax.ShapeDtypeStruct((1, 1, 1, 2048), jnp.float32), jax.ShapeDtypeStruct((1, 1, 2048, 1), jnp.bool_)
    loss = lambda q, k, v, bias, mask: jnp.sum(dot_product_attention(q, k, v, bias, mask))
    assert temp_bytes(jax.grad(loss, (0, 1, 2, 3)), s, s, s, bias, mask) < 60 * MIB


def test_an_untouched_bias_costs_no_gradient():
    # A constant bias [1, 1, 4096, 4096] in float32 is 64 MiB: an argument, never a temporary.
    s = jax.ShapeDtypeStruct((1, 4096, 1, 64), jnp.float32)
    bias = jax.ShapeDtypeStruct((1, 1, 4096, 4096), jnp.float32)
    loss = lambda q, k, v, bias: jnp.sum(dot_product_attention(q, k, v, bias))
    assert temp_bytes(jax.grad(loss, (0, 1, 2)), s, s, s, bias) < 40 * MIB


def test_causal_tiles_are_skipped():
    s = jax.ShapeDtypeStruct((1, 64, 1, 4), jnp.float32)
    tiles = lambda **options: max(
        eqn.params["length"] for eqn in _equations(
            jax.make_jaxpr(lambda q: dot_product_attention(q, q, q, query_chunk_size=8, key_chunk_size=8, **options))(s)
        ) if eqn.primitive.name == "scan"
    )  # fmt: skip
    assert tiles() == 64 and tiles(is_causal=True) == 36 and tiles(local_window_size=(7, 0)) == 15


def _equations(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for sub in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            if hasattr(sub, "eqns"):
                yield from _equations(sub)
