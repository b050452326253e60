"""What is transposed and lies as it was made, beside arrays that are strided."""

import itertools

import numpy as np
import pytest

from jaxremat.cost.hlo_views import View, places, turned, view_of


def assert_lies(read, array):
    """An array in memory lies as a view of a variable of its shape says."""
    view = view_of(read, array.shape)
    wide = [dim for dim, size in enumerate(array.shape) if size > 1]
    by_stride = sorted(range(len(wide)), key=lambda place: -array.strides[wide[place]])
    assert list(view.order) == by_stride and list(view.sizes) == [array.shape[wide[place]] for place in by_stride]
    assert view.shape == tuple(size for size in array.shape if size > 1) and view.has_shape(array.shape)


@pytest.mark.parametrize("shape", [(2, 3, 4), (2, 1, 3), (4, 2, 1, 3), (5,), (1, 1)])
def test_views_lie_as_strided_arrays_do(shape):
    array = np.zeros(shape)
    for first, second in itertools.product(itertools.permutations(range(len(shape))), repeat=2):
        once = turned(7, shape, first)
        assert_lies(once, array.transpose(first))
        twice = turned(once, array.transpose(first).shape, second)
        assert_lies(twice, array.transpose(first).transpose(second))
        assert twice == 7 and isinstance(twice, View) == (
            list(view_of(twice, ()).order) != sorted(view_of(twice, ()).order)
        )


def test_dimensions_that_are_left_out_leave_the_others_as_they_lie():
    shape = (2, 3, 1, 4, 5)
    for permutation in itertools.permutations(range(5)):
        array = np.zeros(shape).transpose(permutation)
        view = view_of(turned(0, shape, permutation), array.shape)
        for axes in itertools.combinations(range(5), 2):
            gone = places(array.shape, axes)
            assert_lies(view.without(gone), array[tuple(0 if dim in axes else slice(None) for dim in range(5))])
            assert [view.order[position] for position in view.positions(gone)] == [p for p in view.order if p in gone]
