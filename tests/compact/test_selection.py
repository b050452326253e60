"""Which weights are compressed, and how wide."""

import jax
import jax.numpy as jnp
import pytest

from jaxremat.base.errors import ArgumentError
from jaxremat.compact.selection import check_rank, default_select, make_compression, named_leaves, rank_of

MATRIX = jax.ShapeDtypeStruct((8, 4), jnp.float32)


@pytest.mark.parametrize(
    ("path", "chosen"),
    [
        ("params/block_0/up/kernel", True),
        ("params/block_0/attention/query/kernel", True),
        ("params/block_0/attention/out/kernel", False),
        ("layers/0/attn/o_proj/kernel", False),
        ("params/Embed_0/embedding", False),
        ("model.wte", False),
        ("lm_head/kernel", False),
        ("params/LayerNorm_0/scale", False),
        ("headroom/kernel", True),
        ("params/router/kernel", True),
    ],
)
def test_weights_are_chosen_by_the_parts_of_their_path(path, chosen):
    assert default_select(path, MATRIX) == chosen


@pytest.mark.parametrize(("shape", "dtype"), [((8,), jnp.float32), ((8, 4), jnp.int32), ((), jnp.float32)])
def test_what_is_no_matrix_of_floats_stays(shape, dtype):
    assert not default_select("params/up/kernel", jax.ShapeDtypeStruct(shape, dtype))


def test_leaves_are_named_in_the_order_of_the_tree():
    tree = {"b": [1, 2], "a": {"kernel": 3}}
    assert named_leaves(tree) == [("a/kernel", 3), ("b/0", 1), ("b/1", 2)]


@pytest.mark.parametrize(("rank", "width"), [(3, 3), (0.5, 16), (1.0, 32), (0.001, 1)])
def test_a_fraction_is_one_of_all_that_is_contracted(rank, width):
    assert rank_of(check_rank(rank), (4, 8, 5), (0, 1)) == width


@pytest.mark.parametrize("rank", [0, -1, 1.5, 0.0, True, "4"])
def test_other_ranks_are_refused(rank):
    with pytest.raises(ArgumentError, match="neither a positive integer nor a fraction"):
        check_rank(rank)


def test_a_projection_is_no_wider_than_its_input():
    assert make_compression(2, "up", MATRIX, (0,), 8).rank == 8
    with pytest.raises(ArgumentError, match="more than the input width 8 of up"):
        make_compression(2, "up", MATRIX, (0,), 9)
