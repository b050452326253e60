"""Contractions and convolutions, with the copies that each compiler makes; compiled programs are asked elsewhere."""

import math

import jax
import jax.numpy as jnp
import pytest

from jaxremat.backends.cpu import CPU
from jaxremat.backends.cuda import CUDA
from jaxremat.cost.hlo_model import lower


def array(*dims, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(dims, dtype)


def product_of(fun, *args, backend=CPU):
    """(the product, what makes each of its operands)."""
    program = lower(jax.make_jaxpr(fun)(*args).jaxpr, backend)
    (index,) = (i for i, op in enumerate(program.ops) if op.kind in ("dot", "conv"))
    return program.ops[index], [program.ops[read].kind for read in program.reads[index]]


@pytest.mark.parametrize("fun", [lambda a, b: a @ b, lambda a, b: (b.T @ a.T).T], ids=["plain", "the other way"])
def test_transposes_of_matrices_are_folded_into_products(fun):
    product, operands = product_of(fun, array(8, 16), array(16, 4))
    assert operands == ["input", "input"] and product.flops == 2 * 8 * 16 * 4


@pytest.mark.parametrize(("backend", "copied"), [(CPU, "transpose"), (CUDA, "transpose")])
def test_batches_that_do_not_lead_are_copied(backend, copied):
    heads = lambda q, k: jnp.einsum("bqhd,bkhd->bhqk", q, k)
    operands = product_of(heads, array(2, 8, 4, 16), array(2, 8, 4, 16), backend=backend)[1]
    assert operands == [copied, copied]


@pytest.mark.parametrize(
    ("shares", "values", "copies"),
    [((4, 8, 2, 16, 32), "gbhts,bshd->bhtgd", 2), ((16, 8, 2, 32), "tbhs,bshd->bhtd", 1)],
    ids=["groups and rows", "rows alone"],
)
def test_products_share_a_copy_whose_rows_are_one_dimension(shares, values, copies):
    """What is several dimensions lies in the order in which one product reads it, and in another for the gradient."""
    loss = lambda p, v: jnp.sum(jnp.einsum(values, jnp.sin(p), v) ** 2)
    program = lower(jax.make_jaxpr(jax.grad(loss, 1))(array(*shares), array(8, 32, 2, 48)).jaxpr, CUDA)
    of_shares = [op for op in program.ops if op.kind == "transpose" and op.elements == math.prod(shares)]
    assert len(of_shares) == copies


def test_products_share_a_copy_that_one_reads_by_rows_and_another_by_columns():
    contracted = lambda p, x, dim: jax.lax.dot_general(p, x, (((dim,), (1,)), ((1, 2), (0, 2))))
    both = lambda p, x, y: (contracted(jnp.sin(p), x, 3), contracted(jnp.sin(p), y, 0))
    program = lower(jax.make_jaxpr(both)(array(16, 8, 2, 32), array(8, 32, 2, 48), array(8, 16, 2, 48)).jaxpr, CUDA)
    assert [op.elements for op in program.ops if op.kind == "transpose" and len(op.shape) == 4].count(
        16 * 8 * 2 * 32
    ) == 1


@pytest.mark.parametrize("backend", [CPU, CUDA])
def test_rows_of_several_dimensions_are_seen_as_one(backend):
    operands = product_of(lambda x, w: x @ w, array(2, 8, 16), array(16, 4), backend=backend)[1]
    assert operands == ["bitcast", "input"]


@pytest.mark.parametrize(("dtype", "widened"), [(jnp.float32, False), (jnp.float16, True)])
def test_a_cpu_multiplies_in_float32(dtype, widened):
    product, operands = product_of(lambda a, b: a.T @ b, array(16, 8, dtype=dtype), array(16, 4, dtype=dtype))
    assert product.dtype == "float32" and (operands[0] == "convert_element_type") == widened


def test_a_library_takes_matrices_and_no_single_rows():
    whole, row = (product_of(jnp.matmul, array(rows, 64), array(64, 64))[0] for rows in (64, 1))
    assert whole.in_library and not row.in_library


def conv(x, k, order=("NHWC", "HWIO", "NHWC"), **more):
    return jax.lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=order, **more)


def test_channels_come_last_on_a_cpu():
    first = lambda x, k: conv(x, k, ("NCHW", "OIHW", "NCHW"))
    assert product_of(conv, array(2, 8, 8, 32), array(3, 3, 32, 32))[1] == ["input", "input"]
    assert product_of(first, array(2, 32, 8, 8), array(32, 32, 3, 3))[1] == ["transpose", "transpose"]


@pytest.mark.parametrize(("channels", "taken"), [(16, False), (17, True)])
def test_a_library_takes_convolutions_of_enough_channels(channels, taken):
    product, _ = product_of(conv, array(2, 8, 8, channels), array(3, 3, channels, channels))
    assert product.in_library == taken


def test_a_library_takes_no_image_that_grows():
    grown = lambda x, k: jax.lax.conv_general_dilated(
        x, k, (1, 1), ((2, 2), (2, 2)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    assert not product_of(grown, array(2, 8, 8, 32), array(3, 3, 32, 32))[0].in_library
