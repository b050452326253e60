"""Blocks, tilings and chunked maps, against the plain computation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from jaxremat import chunk
from jaxremat.base.errors import ArgumentError
from jaxremat.chunk.tiling.blocks import add_block, read_block
from jaxremat.chunk.tiling.tiles import Span, Tiling, attention_tiling, dividing_size, even_size


@settings(deadline=None)
@given(length=st.integers(1, 300), limit=st.integers(1, 300))
def test_chunk_sizes(length, limit):
    even, dividing = even_size(length, limit), dividing_size(length, limit)
    assert 1 <= even <= min(length, limit) and -(-length // even) == -(-length // limit)
    assert length % dividing == 0 and 1 <= dividing <= limit


@settings(deadline=None)
@given(
    queries=st.integers(1, 20), keys=st.integers(1, 20), query_chunk=st.integers(1, 8), key_chunk=st.integers(1, 8),
    left=st.none() | st.integers(0, 5), right=st.none() | st.integers(0, 5),
)  # fmt: skip
def test_tiles_cover_the_band(queries, keys, query_chunk, key_chunk, left, right):
    tiling = attention_tiling((queries, keys), 2**20, query_chunk, key_chunk, (left, right))
    covered = np.zeros((queries, keys), bool)
    for place in tiling.places():
        start = np.minimum(place, np.subtract(tiling.lengths, tiling.sizes))
        tile = np.s_[start[0] : start[0] + tiling.sizes[0], start[1] : start[1] + tiling.sizes[1]]
        distance = np.subtract.outer(np.arange(queries), np.arange(keys)).T[tile[1], tile[0]]
        work = (left is None or (distance <= left)) & (right is None or (-distance <= right))
        assert np.any(work)
        covered[tile] = True
    distance = np.subtract.outer(np.arange(queries), np.arange(keys))
    work = np.ones_like(covered)
    if left is not None:
        work &= distance <= left
    if right is not None:
        work &= -distance <= right
    assert np.all(covered | ~work)


def test_causal_tiles_are_about_half():
    assert len(Tiling((1024, 1024), (64, 64), (None, 0)).places()) == 16 * 17 // 2


@settings(deadline=None)
@given(length=st.integers(1, 20), size=st.integers(1, 20))
def test_trim_takes_each_entry_once(length, size):
    tiling = Tiling((length,), (even_size(length, size),))
    entries = np.arange(length)
    blocks = [entries[min(p, length - tiling.sizes[0]) :][: tiling.sizes[0]] for (p,) in tiling.places()]
    np.testing.assert_array_equal(tiling.trim(jnp.asarray(np.concatenate(blocks)), (Span(0),)), entries)


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


@settings(max_examples=8, deadline=None)
@given(length=st.integers(1, 9), size=st.integers(1, 10), in_axis=st.integers(0, 1), out_axis=st.integers(0, 1))
def test_map_chunks_is_the_map(length, size, in_axis, out_axis):
    weight = jnp.asarray(np.random.default_rng(1).normal(size=(3, 3)), jnp.float32)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(length, 3)), jnp.float32)
    x = x if in_axis == 0 else x.T

    def rows(x, w):
        y = jnp.tanh((x if in_axis == 0 else x.T) @ w)
        return {"y": y if out_axis == 0 else y.T, "sign": (y > 0).astype(jnp.int32) if out_axis == 0 else (y > 0).T}

    ours = chunk.map_chunks(rows, size, in_axes=(in_axis, None), out_axes=out_axis)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), ours(x, weight), rows(x, weight))


def test_map_chunks_differentiates_what_it_closes_over():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(7, 3)), jnp.float32)

    def loss(w, mapped):
        rows = lambda x: jnp.sin(x @ w)
        return jnp.sum((chunk.map_chunks(rows, 3) if mapped else rows)(x) ** 2)

    w = jnp.ones((3, 3)) / 3
    np.testing.assert_allclose(jax.grad(loss)(w, True), jax.grad(loss)(w, False), atol=1e-5)
    np.testing.assert_allclose(jax.hessian(loss)(w, True), jax.hessian(loss)(w, False), atol=1e-4)


def test_map_chunks_keeps_one_chunk():
    # [4096, 16384] float32 between the products is 256 MiB; 256 rows of it are 16 MiB, and it appears a few times.
    x = jax.ShapeDtypeStruct((4096, 64), jnp.float32)
    up = jax.ShapeDtypeStruct((64, 16384), jnp.float32)
    rows = lambda x, up: jnp.tanh(x @ up) @ up.T
    ours = chunk.map_chunks(rows, 256, in_axes=(0, None))
    temp_bytes = lambda f: (
        jax.jit(jax.grad(lambda *a: f(*a).sum(), (0, 1))).lower(x, up).compile().memory_analysis().temp_size_in_bytes
    )
    assert temp_bytes(ours) < 100 * 2**20 < 256 * 2**20 <= temp_bytes(rows)


def test_map_chunks_refuses_what_does_not_fit():
    with pytest.raises(ArgumentError, match="agree in the length"):
        chunk.map_chunks(jnp.add, 2)(jnp.ones(3), jnp.ones(4))
    with pytest.raises(ArgumentError, match="in_axes has 1 entries for 2"):
        chunk.map_chunks(jnp.add, 2, in_axes=(0,))(jnp.ones(3), jnp.ones(3))
    with pytest.raises(ArgumentError, match="axis 1 does not exist"):
        chunk.map_chunks(jnp.sin, 2, in_axes=0, out_axes=1)(jnp.ones(3))
