"""What products of a GPU, and of a TPU, compute of what they read, and of what reads them."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from fused_programs import H200, TPU, written

from jaxremat.backends.cuda import CUDA_TRIED
from jaxremat.cost.fusion import fuse
from jaxremat.cost.hlo_model import lower

X, W = jax.ShapeDtypeStruct((2048, 1024), jnp.float32), jax.ShapeDtypeStruct((1024, 1024), jnp.float32)


def between_products(f):
    """`f` of a product, read by another product and by a sum."""

    def fun(x, w):
        y = f(x @ w)
        return y @ w, jnp.sum(y * 2.0, 0)

    return fun


def test_what_a_product_reads_is_written_by_the_product_before():
    assert written(between_products(jnp.exp), X, W) == ["exp", "dot_general", "reduce_sum"]


def test_a_product_whose_result_two_read_is_written():
    assert written(lambda x, w: ((y := x @ w) * 2.0, jnp.exp(y)), X, W) == ["dot_general", "mul", "exp"]


def test_what_follows_a_product_is_a_loop_of_its_own_where_a_barrier_takes_it_in_another_shape():
    fenced = lambda x, w: ((y := jnp.tanh(x @ w))[::-1] * 2.0, jax.lax.optimization_barrier(y))
    tokens = jax.ShapeDtypeStruct((4, 512, 1024), jnp.float32)
    assert written(fenced, tokens, W)[:2] == ["dot_general", "tanh"]
    assert written(fenced, X, W)[0] == "tanh"


def side_by_side(number, width, dim=1):
    """A product of what lies side by side, each part computed of two arrays."""

    def fun(x, y, w):
        parts = [jnp.exp(x * (y + k))[:, :width] for k in range(number)]
        whole = jnp.concatenate(parts, 1)
        return jax.lax.dot_general(w, whole, (((0,), (1 - dim,)), ((), ())))

    return fun


@pytest.mark.parametrize(
    ("number", "width", "is_whole"), [(2, 64, False), (7, 64, False), (8, 64, True), (2, 96, True)]
)
def test_a_product_reads_few_arrays_as_if_they_lay_side_by_side(number, width, is_whole):
    rows = jax.ShapeDtypeStruct((2048, 512), jnp.float32)
    assert ("concatenate" in written(side_by_side(number, width), X, X, rows)) == is_whole


def test_not_where_they_lie_side_by_side_in_what_it_contracts():
    columns = jax.ShapeDtypeStruct((128, 512), jnp.float32)
    assert "concatenate" in written(side_by_side(2, 64, dim=0), X, X, columns)


@pytest.mark.parametrize(("subscripts", "is_whole"), [("bsd,bse->de", True), ("bsd,bse->bde", False)])
def test_rows_of_matrices_of_a_batch_do_and_not_where_rows_are_several_dimensions(subscripts, is_whole):
    tokens, heads = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((4, 512, 256), (4, 512, 8, 64)))

    def fun(x, y, w):
        return jnp.einsum(subscripts, w, jnp.concatenate([jnp.exp(x * y), jnp.exp(x - y)], -1))

    def of_heads(x, y, w):
        return jnp.einsum("bsd,bshe->bdhe", w, jnp.concatenate([jnp.exp(x * y), jnp.exp(x - y)], -1))

    assert ("concatenate" in written(fun, tokens, tokens, tokens)) == is_whole
    assert "concatenate" in written(of_heads, heads, heads, tokens)


def test_a_product_of_a_tpu_computes_what_it_reads_and_sums_what_it_makes():
    summed = lambda x, w: (jnp.sum((x * jnp.tanh(x)) @ w, 0), (x * jnp.tanh(x)) @ (w * 2))
    assert {"mul", "dot_general", "reduce_sum"} <= set(written(summed, X, W))
    assert written(summed, X, W, device=TPU) == ["reduce_sum", "dot_general"]


def test_a_product_of_a_tpu_reads_what_is_rounded_by_what_makes_it():
    def made_bytes(precision, dtype):
        def fun(x, w):
            made = jnp.dot(x, w, precision=precision)
            return jnp.dot(made, w, precision=precision), jnp.dot(made, w * 2, precision=precision)

        args = (jax.ShapeDtypeStruct(like.shape, dtype) for like in (X, W))
        fusion = fuse(lower(jax.make_jaxpr(fun)(*args).jaxpr, TPU.backend), TPU)
        return fusion.program.ops[fusion.kernels[0]].size_bytes

    halves = 2 * 2048 * 1024
    assert made_bytes(None, jnp.float32) == made_bytes("default", jnp.float32) == halves
    assert made_bytes("highest", jnp.float32) == 2 * halves
    assert made_bytes("BF16_BF16_F32_X3", jnp.float32) == 2 * halves
    assert made_bytes(None, jnp.bfloat16) == halves


def test_a_product_of_a_tpu_computes_what_it_reads_of_any_rank():
    tokens = jax.ShapeDtypeStruct((4, 512, 1024), jnp.float32)
    twice = lambda x, w: (jnp.tanh(x) @ w, jnp.tanh(x) @ (w * 2))
    fusion = fuse(lower(jax.make_jaxpr(twice)(tokens, W).jaxpr, TPU.backend), TPU)
    assert [fusion.program.ops[kernel].kind for kernel in fusion.kernels] == ["dot", "dot"]


ROW = jax.ShapeDtypeStruct((1, 1024), jnp.float32)


@pytest.mark.parametrize(
    ("fun", "names"),
    [
        (lambda x, w, row: (x * 2.0) @ w, ["dot_general"]),
        (lambda x, w, row: ((y := jnp.sin(x) * x) @ w, y + 1.0), ["mul", "dot_general", "add"]),
        (lambda x, w, row: ((y := jnp.sin(x)) @ w, y * x), ["dot_general", "mul"]),
        (lambda x, w, row: ((y := x * 2.0) @ w, y + 1.0), ["dot_general", "add"]),
        (lambda x, w, row: ((y := x + row) @ w, jnp.sin(y)), ["dot_general", "sin"]),
        (lambda x, w, row: ((y := x + jnp.tanh(row)) @ w, jnp.sin(y)), ["tanh", "add", "dot_general", "sin"]),
        (lambda x, w, row: (x + jnp.tanh(row)) @ w, ["tanh", "add", "dot_general"]),
        (lambda x, w, row: ((y := jnp.sin(x * x[::-1])) @ w, y * x), ["mul", "dot_general", "mul"]),
        (
            lambda x, w, row: (x * x[::-1]).astype(jnp.bfloat16) @ w.astype(jnp.bfloat16),
            ["convert_element_type", "dot_general"],
        ),
        (lambda x, w, row: (x * x[::-1]) @ w, ["mul", "dot_general"]),
        (lambda x, w, row: x @ w + row, ["add"]),
        (lambda x, w, row: x @ w + x[::-1], ["dot_general", "add"]),
    ],
    ids=[
        *("alone", "read by another", "of one array", "with a number", "with a row that is given", "with another row"),
        "alone with another row",
        *("as far as that goes", "narrowed", "of two arrays", "with a row", "with what a loop makes"),
    ],
)
def test_a_product_takes_what_is_there_and_what_it_alone_reads_or_can_make_again(fun, names):
    assert written(fun, X, W, ROW) == names


def test_a_product_reads_what_a_row_chooses():
    """From an array, or zeros."""
    chosen = lambda x, w, row: jax.lax.select(jnp.broadcast_to(row, x.shape), x, jnp.zeros_like(x)) @ w
    assert written(chosen, X, W, jax.ShapeDtypeStruct(ROW.shape, bool)) == ["select_n", "dot_general"]


def test_what_is_only_widened_after_a_product_is_left_to_its_readers():
    half = lambda like: jax.ShapeDtypeStruct(like.shape, jnp.bfloat16)
    widened = lambda x, w: ((y := (x @ w).astype(jnp.float32)) * 2.0, jnp.sum(y, 0))
    assert written(widened, half(X), half(W))[0] == "dot_general"
    returned = lambda x, w: (x @ w).astype(jnp.float32)
    assert written(returned, half(X), half(W)) == ["convert_element_type"]


def test_a_convolution_takes_a_bias_and_what_is_done_to_both():
    conv = lambda x, k: jax.lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    shapes = (8, 64, 64, 32), (3, 3, 32, 32), (1, 1, 1, 32)
    image, kernel, bias = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
    names = written(lambda x, k, b: conv(x, k) + b, image, kernel, bias)
    assert "conv_general_dilated" not in names


DILATED = ((1, 2), (1, 2))


def convolved(x, k, padding="SAME", **options):
    return jax.lax.conv_general_dilated(x, k, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"), **options)


@pytest.mark.parametrize(
    ("fun", "names"),
    [
        (lambda x, k: convolved(x, k) + x, ["add"]),
        (lambda x, k: convolved(x, k) + convolved(x, k[::-1]), ["conv_general_dilated", "add"]),
        (lambda x, k: convolved(x, k) + jnp.tanh(x), ["tanh", "add"]),
        (lambda x, k: convolved(x, jax.lax.rev(k, (0, 1))) + x, ["conv_general_dilated", "add"]),
        (lambda x, k: convolved(x, jax.lax.rev(k[:1, :1], (0, 1))) + x, ["add"]),
        (lambda x, k: convolved(x[:, ::2, ::2], k, DILATED, lhs_dilation=(2, 2)) + x, ["conv_general_dilated", "add"]),
    ],
    ids=["an array", "another one", "what a loop makes", "reversed", "one entry", "dilated"],
)
def test_the_library_adds_an_array_to_convolutions_as_a_forward_pass_has_them(fun, names):
    image, kernel = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((8, 64, 64, 32), (3, 3, 32, 32)))
    assert [name for name in written(fun, image, kernel) if name not in ("rev", "slice")] == names


def test_products_of_a_library_compute_nothing_else_where_kernels_are_tried_out():
    """Those with batches may be compiled, and then compute what follows."""
    tried = dataclasses.replace(H200, backend=CUDA_TRIED)
    chain = lambda x, w: jnp.tanh((x * 2.0) @ w)
    assert written(chain, X, W) == ["tanh"]
    assert written(chain, X, W, device=tried) == ["mul", "dot_general", "tanh"]
    batches = jax.ShapeDtypeStruct((8, 256, 128), jnp.float32), jax.ShapeDtypeStruct((8, 128, 64), jnp.float32)
    assert written(chain, *batches, device=tried) == ["tanh"]
