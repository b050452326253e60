"""How boxes of tokens are cut."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxremat.chunk.rewriting.tokens import KEEPING_NOTHING, PLANNED, token_window, tokens_per_tile
from jaxremat.chunk.tiling.tiles import Span

BOXES = st.lists(st.integers(1, 30), min_size=1, max_size=3).map(tuple)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(BOXES, st.integers(1, 500))
def test_rows_stay_whole_where_they_fit(lengths, tokens):
    tiling = KEEPING_NOTHING.cut(lengths, tokens)
    assert math.prod(tiling.sizes) <= max(tokens, 1) and tiling.lengths == lengths
    cut = [axis for axis, (length, size) in enumerate(zip(lengths, tiling.sizes)) if size < length]
    assert set(tiling.sizes[: max(cut, default=0)]) <= {1}, "what comes before a cut axis goes one by one"


@settings(max_examples=80, deadline=None, derandomize=True)
@given(BOXES, st.integers(1, 500))
def test_planned_loops_cut_the_longest_axis_alone(lengths, tokens):
    tiling = PLANNED.cut(lengths, tokens)
    cut = [axis for axis, (length, size) in enumerate(zip(lengths, tiling.sizes)) if size < length]
    assert len(cut) <= 1 and all(lengths[axis] == max(lengths) for axis in cut)
    if math.prod(lengths) <= tokens:
        assert not cut


def test_tiles_keep_matrix_units_busy():
    assert tokens_per_tile(2**20, 1024) == 1024 and tokens_per_tile(2**10, 1024) == 128


@pytest.mark.parametrize(
    ("shape", "window"), [((8, 4), (Span(0), Span(1))), ((8, 1, 4), (Span(0), None, Span(1))), ((1,), (None,))]
)
def test_axes_of_one_entry_follow_nothing(shape, window):
    assert token_window(shape) == window
