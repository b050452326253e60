"""Tiles put together against the whole, in both ways of running them, derivatives included."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxremat.chunk.tiling.tile_map import TileMap, map_tiles, scan_tiles
from jaxremat.chunk.tiling.tiles import Span, Tiling

X = jnp.asarray(np.random.default_rng(0).normal(size=(7, 4)), jnp.float32)
W = jnp.asarray(np.random.default_rng(1).normal(size=(4, 3)) / 2, jnp.float32)


def rows(blocks, reads):
    """A product of rows, its largest entries, and which row each of them is."""
    x, w = blocks
    made = jnp.tanh(x @ w)
    return made, made.max(1), (reads[0] + jnp.arange(x.shape[0])).astype(jnp.int32)


def task(size):
    windows, out = ((Span(0), None), (None, None)), ((Span(0), None), (Span(0),), (Span(0),))
    return TileMap(rows, Tiling((7,), (size,)), windows, out)


def whole(x, w):
    made = jnp.tanh(x @ w)
    return [made, made.max(1), jnp.arange(7)]


@pytest.mark.parametrize("run", [map_tiles, scan_tiles])
@pytest.mark.parametrize("size", [1, 3, 6])
def test_results_are_those_of_the_whole(run, size):
    for ours, theirs in zip(run(task(size), [X, W]), whole(X, W), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


@pytest.mark.parametrize("run", [map_tiles, scan_tiles])
def test_derivatives_are_those_of_the_whole(run):
    """Entries that the last two tiles both read count once."""
    loss = lambda f, x, w: sum(jnp.sum(y**2) for y in f(x, w)[:2])
    tiled = functools.partial(loss, lambda x, w: run(task(3), [x, w]))
    plain = functools.partial(loss, whole)
    second = lambda f: lambda x, w: jnp.sum(jax.grad(f, 1)(x, w) ** 2)
    for ours, theirs in ((tiled, plain), (second(tiled), second(plain))):
        gradients = (jax.jit(jax.grad(f, (0, 1)))(X, W) for f in (ours, theirs))
        for a, b in zip(*gradients):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_a_tile_in_two_directions():
    """A table of sums, cut both ways, of which neither side divides the box."""
    add = TileMap(
        lambda blocks, reads: [blocks[0][:, None] + blocks[1][None]],
        Tiling((7, 5), (3, 2)),
        ((Span(0),), (Span(1),)),
        ((Span(0), Span(1)),),
    )
    (table,) = map_tiles(add, [X[:, 0], W[0].repeat(2)[:5]])
    np.testing.assert_allclose(table, X[:, :1] + W[0].repeat(2)[:5])


def test_what_every_tile_reads_is_summed_in_float32():
    """A thousand gradients of one: bfloat16 would stop at 256."""
    ones = jnp.ones((1024, 1), jnp.bfloat16)
    windows = (Span(0), None), (None, None)
    each = TileMap(lambda blocks, reads: [blocks[0] * blocks[1]], Tiling((1024,), (1,)), windows, windows[:1])
    loss = lambda w: scan_tiles(each, [ones, w])[0].astype(jnp.float32).sum()
    gradient = jax.grad(loss)(jnp.ones((1, 1), jnp.bfloat16))
    assert gradient.dtype == jnp.bfloat16 and float(gradient[0, 0]) == 1024
