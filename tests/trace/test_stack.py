"""Stacks of entries along any axis, against indexing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxremat.trace.stack import Stack, arrays_of, stacks

ARRAY = jnp.arange(2 * 3 * 4.0).reshape(2, 3, 4)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_entries_are_slices(axis):
    stack = Stack(ARRAY, axis)
    for index in range(ARRAY.shape[axis]):
        np.testing.assert_array_equal(stack.at(index), jnp.take(ARRAY, index, axis))
        np.testing.assert_array_equal(stack.in_order[index], stack.at(index))
    changed = stack.put(jnp.full_like(stack.at(1), 9, jnp.int32), 1)
    assert changed.array.dtype == ARRAY.dtype and changed.axis == axis
    np.testing.assert_array_equal(changed.array, jnp.moveaxis(jnp.moveaxis(ARRAY, axis, 0).at[1].set(9), 0, axis))
    np.testing.assert_array_equal(stack.filled(stack.in_order).array, ARRAY)


def test_an_entry_is_read_and_written_without_arithmetic_on_its_index():
    stack = Stack(ARRAY, 1)
    read = jax.make_jaxpr(stack.at)(jnp.int32(0))
    written = jax.make_jaxpr(lambda index, entry: stack.put(entry, index).array)(jnp.int32(0), ARRAY[:, 0])
    names = lambda jaxpr: [eqn.primitive.name for eqn in jaxpr.eqns]
    assert names(read) == ["dynamic_slice", "squeeze"]
    assert names(written)[-1] == "dynamic_update_slice" and {"lt", "add", "select_n"}.isdisjoint(names(written))


def test_stacks_travel_through_loops_as_trees():
    stack = Stack(ARRAY, 2)
    total = jax.lax.fori_loop(0, 4, lambda i, kept: kept.put(kept.at(i) + 1, i), stack)
    np.testing.assert_array_equal(total.array, ARRAY + 1)
    assert [s.axis for s in stacks([ARRAY, ARRAY], (1, 0))] == [1, 0]
    assert arrays_of(stacks([ARRAY]))[0] is ARRAY
