"""Which products of a lowered program become one; compiled programs are asked in tests/aot/test_gpu_rules.py."""

import jax
import jax.numpy as jnp
import pytest

from jaxremat.backends.cuda import CUDA
from jaxremat.cost.hlo_model import lower
from jaxremat.cost.merged_products import merged_products, operands_of, shared_side


def array(*dims, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(dims, dtype)


X, W, V = array(512, 128), array(128, 64), array(128, 32)


def merged(fun, *args):
    program = lower(jax.make_jaxpr(fun)(*args).jaxpr, CUDA)
    groups = merged_products(program)
    return program, groups, [len(group) for group in groups]


def test_products_of_the_same_rows_or_columns_become_one():
    program, (group,), sizes = merged(lambda x, w, v: (x @ w, x @ v, jnp.sin(x @ w) @ w.T), X, W, V)
    assert sizes == [2] and shared_side(program, group) == 0
    program, (group,), sizes = merged(lambda x, y, w: (x @ w, y @ w), X, X, W)
    assert sizes == [2] and shared_side(program, group) == 1


def test_so_do_gradients_of_their_weights():
    def loss(weights, x):
        query, key, value = (jnp.tanh(x @ w) for w in weights)
        return jnp.sum(query * key * value)

    _, _, sizes = merged(jax.grad(loss), [W] * 3, X)
    assert sizes == [3, 3]


def test_a_product_that_needs_the_other_does_not():
    assert not merged(lambda x, w: (x @ w, x @ (w + jnp.sum(x @ w))), X, W)[2]


def test_nor_one_that_needs_it_by_way_of_merged_ones():
    def fun(x, w, u):
        first, second = x @ w, jnp.sin(u) @ w
        return first, second, jnp.exp(second).T @ x, x.T @ jnp.exp(first)

    assert 2 in merged(fun, X, W, X)[2]

    def crossed(x, y, w, v):
        """Either pair alone could be merged; both would wait for each other."""
        one, two = x @ w, y @ v
        return one, two, x @ (v + jnp.sum(two)), y @ (w + jnp.sum(one))

    assert merged(crossed, X, X, W, W)[2] == [2]


def test_two_that_contract_the_same_operand_otherwise_do_not():
    assert not merged(lambda x, w, v: (x @ w, x.T @ v), array(128, 128), W, V)[2]


def test_operands_and_results_are_of_the_same_dtype():
    narrow = array(128, 32, dtype=jnp.bfloat16)
    assert not merged(lambda x, w, v: (x @ w, jax.lax.dot(x, v, preferred_element_type=jnp.float32)), X, W, narrow)[2]


@pytest.mark.parametrize(("rows", "number"), [(32256, 2), (32512, 0)])
def test_both_of_two_are_small(rows, number):
    """As compiled: (rows + 512) x 512 numbers of four bytes are what is not shared and the result."""
    x, w = array(rows, 512), array(512, 512)
    assert sum(merged(lambda x, w, v: (x @ w, x @ v), x, w, w)[2]) == number
    assert not merged(lambda x, w, v: (x @ w, x @ v), array(32512, 512), array(512, 512), array(512, 8))[2]


def test_products_that_are_one_take_others_while_they_are_small():
    """Eight products of 16 MiB, as compiled."""
    fun = lambda x, *ws: [x @ w for w in ws]
    assert merged(fun, array(8192, 1024), *[array(1024, 512)] * 8)[2] == [4, 4]


def test_what_was_merged_by_one_operand_is_not_by_the_other():
    program, groups, sizes = merged(lambda x, w, y, v: (x @ w, x @ v, y @ w), X, W, X, V)
    assert sizes == [2] and shared_side(program, groups[0]) == 0


def test_batches_are_merged_too():
    x, w, v = array(4, 512, 128), array(4, 128, 64), array(4, 128, 32)
    assert merged(lambda x, w, v: (x @ w, x @ v), x, w, v)[2] == [2]


def test_what_is_turned_stays_apart():
    """Heads of queries and keys are read in another order than products write them."""

    def scores(x, w, v):
        query, key = (jnp.tanh(x @ each).reshape(4, 128, 4, -1) for each in (w, v))
        return jnp.einsum("bqhd,bkhd->bhqk", query, key)

    weights = array(128, 64)
    assert not merged(lambda x, w, v: scores(x.reshape(512, 128), w, v), array(512, 128), weights, weights)[2]


def test_operands_of_a_transposed_product_change_places():
    program = lower(jax.make_jaxpr(lambda x, w: (x @ w).T)(X, W).jaxpr, CUDA)
    (product,) = (index for index, op in enumerate(program.ops) if op.matrices)
    assert [program.ops[read].shape for read in operands_of(program, product)] == [(128, 64), (512, 128)]
    assert program.ops[product].matrices.sizes == (1, 64, 512, 128)
