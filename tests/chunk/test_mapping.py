"""Chunked maps, against the plain computation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxremat import chunk
from jaxremat.base.errors import ArgumentError


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
