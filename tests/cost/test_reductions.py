"""How reductions are spread over a device."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fused_programs import written

from jaxremat.cost.hlo_ops import Op
from jaxremat.cost.reductions import blocks, partition, steps

X, W = jax.ShapeDtypeStruct((2048, 1024), jnp.float32), jax.ShapeDtypeStruct((1024, 1024), jnp.float32)


def slow_partition(shape, axes):
    """Of all runs of reduced dimensions, those of size 1 included, the longest; the first of equal ones."""
    runs = [(math.prod(shape), 1, 1)]
    for start, end in itertools.combinations(range(len(shape) + 1), 2):
        if start in axes and all(dim in axes or shape[dim] == 1 for dim in range(start, end)):
            runs.append((math.prod(shape[:start]), math.prod(shape[start:end]), math.prod(shape[end:])))
    return max(runs, key=lambda run: run[1])


@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 4), (2, 1, 3, 5), (6,), (1, 1), (3, 2, 1, 2)])
def test_the_longest_run_of_reduced_dimensions_is_reduced_first(shape):
    for number in range(len(shape) + 1):
        for axes in itertools.combinations(range(len(shape)), number):
            before, reduced, after = partition(shape, axes)
            assert reduced == slow_partition(shape, axes)[1]
            assert before * reduced * after == math.prod(shape)


@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 4), (2, 1, 3, 5), (6,), (1, 1), (3, 2, 1, 2), (2, 3, 2, 3, 2)])
def test_a_reduction_becomes_one_per_run_the_longest_first(shape):
    values = np.arange(math.prod(shape)).reshape(shape)
    for number in range(len(shape) + 1):
        for axes in itertools.combinations(range(len(shape)), number):
            left, runs = values, []
            for (before, reduced, after), given in steps(shape, axes):
                assert before * reduced * after == left.size
                left = left.reshape(before, reduced, after).sum(1).reshape(given)
                runs.append(reduced)
            assert left.shape == values.sum(axes).shape and (left == values.sum(axes)).all()
            assert runs == sorted(runs, reverse=True) and (1 not in runs or len(runs) == 1)


@pytest.mark.parametrize(
    ("shape", "axis", "lengths"),
    [((8, 16384), 1, [16384]), ((8, 2**20), 1, [1024, 1024]), ((4096, 8), 0, [4096]), ((2**14, 8), 0, [128, 128])],
)
def test_what_is_too_long_for_one_kernel_is_reduced_in_two(shape, axis, lengths):
    assert [reduced for (_, reduced, _), _ in steps(shape, [axis])] == lengths


def blocks_of(shape, axes, itemsize=4):
    left = tuple(size for dim, size in enumerate(shape) if dim not in axes)
    op = Op("reduce", left, "", itemsize * math.prod(left), partition=partition(shape, axes))
    return blocks(op, Op("input", shape, "", itemsize * math.prod(shape)))


@pytest.mark.parametrize(
    ("shape", "axes", "number"),
    [
        ((1024, 1024), (1,), 128),  # a warp to each row, eight rows to a block
        ((1024, 8192), (1,), 1024),  # a block to each row
        ((1024, 1024), (0,), 16),  # a warp of pairs of columns to each block
        ((4, 1024, 512), (1,), 32),
        ((16, 1024), (0,), math.inf),  # so short that each column is one thread's
        ((0, 4), (0,), math.inf),
    ],
)
def test_blocks_by_hand(shape, axes, number):
    assert blocks_of(shape, axes) == number


def test_narrow_numbers_are_loaded_four_at_once():
    assert blocks_of((1024, 1024), (0,), itemsize=2) == blocks_of((1024, 1024), (0,)) / 2


def test_a_sum_of_nothing_is_written():
    assert written(lambda x: jnp.sum(x * x, 0), jax.ShapeDtypeStruct((0, 4), jnp.float32)) == ["reduce_sum"]


def test_a_sum_is_written_before_it_meets_another_array():
    stack = jax.ShapeDtypeStruct((8, *X.shape), jnp.float32)
    assert written(lambda xs, y: jnp.sum(xs, 0) * y, stack, X) == ["reduce_sum", "mul"]
