"""Reductions as operations: how many, of what, and what is written beside them."""

import jax
import jax.numpy as jnp
import pytest

from jaxremat.backends.devices import resolve_target
from jaxremat.cost.hlo_model import lower

X = jax.ShapeDtypeStruct((32, 64, 16), jnp.float32)
CPU, GPU = (resolve_target(name).backend for name in ("cpu", "h200"))


def operations(fun, *args, backend=CPU):
    """What a function becomes, inputs aside."""
    return [op for op in lower(jax.make_jaxpr(fun)(*args).jaxpr, backend).ops if op.kind != "input"]


def test_dimensions_of_one_entry_take_no_operation():
    assert not operations(lambda x: jnp.sum(x, 1), jax.ShapeDtypeStruct((32, 1, 16), jnp.float32))


@pytest.mark.parametrize(("dtype", "width"), [(jnp.float32, 4), (jnp.bfloat16, 2), (jnp.int8, 1)])
@pytest.mark.parametrize("find", [jnp.argmax, jnp.argmin])
def test_an_index_is_written_with_the_number_that_lies_there(find, dtype, width):
    (found,) = operations(lambda x: find(x, axis=1), jax.ShapeDtypeStruct(X.shape, dtype))
    assert found.shape == (32, 16) and found.size_bytes == 4 * 32 * 16
    assert found.unread_bytes == width * 32 * 16


def test_a_sum_of_what_is_negated_is_negated():
    kinds = [op.kind for op in operations(lambda x: jnp.sum(-x, 1), X)]
    assert kinds[-2:] == ["reduce", "neg"]


@pytest.mark.parametrize(("backend", "number"), [(CPU, 1), (GPU, 2)])
def test_dimensions_that_are_apart_are_summed_one_after_the_other_on_a_gpu(backend, number):
    sums = [op for op in operations(lambda x: jnp.sum(x, (0, 2)), X, backend=backend) if op.kind == "reduce"]
    assert len(sums) == number and sums[-1].shape == (64,) and not any(op.unread_bytes for op in sums)
