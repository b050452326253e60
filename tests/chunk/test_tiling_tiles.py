"""The geometry of tiles: what they cover, and that each entry is taken once."""

import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

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


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(1, 40), min_size=3, max_size=4), entries=st.integers(1, 4096))
def test_tiles_of_attention_hold_about_so_many_scores(lengths, entries):
    tiling = attention_tiling(tuple(lengths), entries)
    assert np.prod(tiling.sizes) <= max(entries, tiling.sizes[-2])  # a tile has one key for all its queries at least
    assert all(length % size == 0 for length, size in zip(tiling.lengths[:-2], tiling.sizes[:-2]))


def test_windows_follow_the_box_at_an_offset():
    """An array of 9 whose entry i + 2 belongs to entry i of a box of 7: the last tile starts early."""
    tiling, window = Tiling((7,), (3,)), (Span(0, 2), None)
    array = jnp.arange(18).reshape(9, 2)
    read = [np.asarray(tiling.block(array, window, tiling.reads(jnp.asarray(place)))) for place in tiling.places()]
    assert [block[0, 0].item() // 2 for block in read] == [2, 5, 6]
    assert tiling.padded_shape(read[0].shape, window) == (9, 2)
