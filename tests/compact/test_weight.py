"""Weights on their way to their products: which parts of which axes their dimensions run over."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxremat.compact.weight import Atom, Parameter, UnfollowedError, regroup, whole


def positions(dims, shape):
    """[view] where in a parameter each entry of a view lies, by adding what its factors say."""
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    axes = []
    for dim in dims:
        at = np.zeros(1, int)
        for atom in dim:
            steps = np.arange(atom.size) * (atom.stride * strides[atom.axis] if atom.axis >= 0 else 0)
            at = (at[:, None] + steps[None]).ravel()
        axes.append(at)
    total = np.zeros((), int)
    for at in axes:
        total = total[..., None] + at
    return total


def parameter(shape, in_axes=None):
    return Parameter(0, "w", shape, in_axes)


SHAPES = st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=3).map(tuple)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(SHAPES, st.randoms(use_true_random=False))
def test_a_reshaped_view_runs_over_the_same_entries_in_order(shape, random):
    weight = whole(parameter(shape), np.zeros(shape))
    size, after = math.prod(shape), []
    while size > 1 and random.random() < 0.8:
        factor = random.choice([n for n in range(2, size + 1) if size % n == 0])
        after.append(factor)
        size //= factor
    after.append(size)
    try:
        dims = regroup(weight.dims, after)
    except UnfollowedError:
        return  # an axis would be cut into parts that do not divide it
    found = positions(dims, shape)
    assert found.shape == tuple(after) and found.ravel().tolist() == list(range(math.prod(shape)))


def test_axes_are_kept_apart_where_a_shape_lets_them():
    dims = regroup(whole(parameter((4, 6)), np.zeros((4, 6))).dims, (2, 2, 6))
    assert dims == ((Atom(0, 2, 2),), (Atom(0, 1, 2),), (Atom(1, 1, 6),))


def test_the_compressed_variable_keeps_what_is_no_input():
    weight = whole(parameter((4, 6, 5), (0, 1)), np.zeros((4, 6, 5)))
    assert weight.kept == [2]


def test_an_input_axis_that_is_merged_with_another_cannot_be_followed():
    weight = whole(parameter((4, 6), (0,)), np.zeros((4, 6)))
    merged = type(weight)(weight.value, None, weight.parameter, regroup(weight.dims, (24,)))
    with pytest.raises(UnfollowedError, match="merges its input axis"):
        _ = merged.kept
