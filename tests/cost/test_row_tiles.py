"""Which kernels take rows that lie apart, by the rules; tests/aot/test_gpu_rules.py asks the compiler."""

import jax
import jax.numpy as jnp
import pytest
from fused_programs import CPU, H200
from masked_rows import causal, half_weights, read_from_memory, softmax, sums, weights

from jaxremat.backends.devices import ROWS_APART
from jaxremat.cost.fusion import fuse
from jaxremat.cost.hlo_model import lower
from jaxremat.cost.kernels import kernel_seconds
from jaxremat.cost.row_tiles import has_rows_apart


def fusion_of(fun, shape, is_read=False, device=H200):
    mask = lambda: read_from_memory(causal(shape[-1])) if is_read else causal(shape[-1])
    args = (jax.ShapeDtypeStruct(each, jnp.float32) for each in (shape, shape[:-1]))
    jaxpr = jax.make_jaxpr(lambda scores, numbers: fun(scores, numbers, mask()))(*args).jaxpr
    return fuse(lower(jaxpr, device.backend), device)


def is_apart(fun, shape, is_read=False, device=H200):
    fusion = fusion_of(fun, shape, is_read, device)
    return any(has_rows_apart(fusion, kernel) for kernel in fusion.kernels)


@pytest.mark.parametrize("fun", [half_weights, sums, softmax, weights])
def test_rows_that_share_a_mask_lie_apart_where_a_kernel_compares_indices(fun):
    assert is_apart(fun, (8, 8, 512, 512))
    assert not is_apart(fun, (8, 8, 512, 512), device=CPU)
    assert not is_apart(fun, (1, 1, 512, 512))


def test_where_the_mask_is_read_only_those_without_a_number_per_row():
    assert is_apart(softmax, (8, 8, 512, 512), is_read=True)
    assert not is_apart(half_weights, (8, 8, 512, 512), is_read=True)
    assert not is_apart(sums, (8, 8, 512, 512), is_read=True)


def test_a_tile_of_more_rows_than_share_a_mask_has_some_side_by_side():
    """64 rows of 256 are taken together, and 32 share a part of the mask; of fewer rows, fewer are."""
    assert not is_apart(half_weights, (8, 8, 256, 256)) and is_apart(half_weights, (8, 4, 256, 256))
    assert not is_apart(half_weights, (8, 2, 512, 512))


def test_short_rows_are_taken_side_by_side():
    assert not is_apart(half_weights, (8, 8, 128, 128))
    assert is_apart(half_weights, (8, 4, 256, 256)) and not is_apart(weights, (8, 4, 256, 256))


def test_a_mask_over_one_axis_is_shared_by_all_rows():
    padding = lambda scores, numbers, mask: half_weights(scores, numbers, jnp.arange(512)[None] < 300)
    assert not is_apart(padding, (8, 8, 512, 512))


def test_they_take_a_part_of_the_bandwidth():
    seconds = []
    for is_read in (False, True):
        fusion = fusion_of(half_weights, (8, 8, 512, 512), is_read)
        seconds.append(max(kernel_seconds(fusion, [[kernel] for kernel in fusion.kernels], H200).values()))
    apart, beside = (each - H200.launch_seconds for each in seconds)
    assert apart * ROWS_APART == pytest.approx(beside, rel=0.01)
