"""What a GPU's compiler fuses, as the model has it; compiled programs are asked in tests/aot/test_gpu_rules.py."""

import jax
import jax.numpy as jnp
import pytest

from jaxremat.backends.devices import resolve_target
from jaxremat.cost.bodies import KnownBodies
from jaxremat.cost.fusion import fuse, materialised
from jaxremat.cost.hlo_model import lower

H200 = resolve_target("h200")
X, W = jax.ShapeDtypeStruct((2048, 1024), jnp.float32), jax.ShapeDtypeStruct((1024, 1024), jnp.float32)


def written(fun, *args, device=H200):
    """Primitives whose results are written, in the order of the program."""
    jaxpr = jax.make_jaxpr(fun)(*args).jaxpr
    found = materialised(jaxpr, device)
    return [eqn.primitive.name for eqn in jaxpr.eqns if found.get(eqn.outvars[0])]


def between_products(f):
    """`f` of a product, read by another product and by a sum."""

    def fun(x, w):
        y = f(x @ w)
        return y @ w, jnp.sum(y * 2.0, 0)

    return fun


def test_a_cheap_value_is_made_again_by_each_loop():
    fun = lambda x: (y := x * 3.0 + 1.0, y[::-1] * 2.0, jnp.sum(y * y, 0))[1:]
    assert written(fun, X) == ["mul", "reduce_sum"]


def test_an_exponential_is_made_again_where_that_moves_fewer_bytes():
    assert "exp" not in written(lambda x: (jnp.exp(x)[::-1] * 2.0, jnp.exp(x) + 1.0), X)


def test_a_hyperbolic_tangent_is_written_once():
    assert "tanh" in written(lambda x: (jnp.tanh(x)[::-1] * 2.0, jnp.tanh(x) + 1.0), X)


def test_what_a_product_reads_is_written_by_the_product_before():
    assert written(between_products(jnp.exp), X, W) == ["exp", "dot_general", "reduce_sum"]


def test_a_product_whose_result_two_read_is_written():
    assert written(lambda x, w: ((y := x @ w) * 2.0, jnp.exp(y)), X, W) == ["dot_general", "mul", "exp"]


def test_what_follows_a_product_is_a_loop_of_its_own_where_a_barrier_takes_it_in_another_shape():
    fenced = lambda x, w: ((y := jnp.tanh(x @ w))[::-1] * 2.0, jax.lax.optimization_barrier(y))
    tokens = jax.ShapeDtypeStruct((4, 512, 1024), jnp.float32)
    assert written(fenced, tokens, W)[:2] == ["dot_general", "tanh"]
    assert written(fenced, X, W)[0] == "tanh"


def test_a_product_of_a_tpu_computes_what_it_reads_and_sums_what_it_makes():
    summed = lambda x, w: (jnp.sum(jnp.tanh(x) @ w, 0), jnp.tanh(x) @ (w * 2))
    assert {"tanh", "dot_general", "reduce_sum"} <= set(written(summed, X, W))
    assert written(summed, X, W, device=resolve_target("tpu-v5e")) == ["reduce_sum", "dot_general"]


def test_a_softmax_is_one_kernel_beside_its_sums():
    names = written(lambda x, w: jax.nn.softmax(x @ w) @ w, X, W)
    assert "exp" not in names and names.count("dot_general") == 2 and "div" in names


def test_what_is_divided_by_the_sum_of_its_row_is_not_written():
    """Compiled for an H200, this is one kernel over the rows."""

    def shares(x):
        entries = jnp.tanh(x)
        return entries / jnp.sum(entries, -1, keepdims=True)

    assert "tanh" not in written(shares, X)


def test_a_softmax_is_written_before_it_is_summed_over_rows():
    assert "div" in written(lambda x: jnp.sum(jax.nn.softmax(x), 0), X)


def test_a_sum_of_columns_reads_what_it_sums():
    assert written(lambda x, y: jnp.sum(x * y, 0), X, X) == ["mul", "reduce_sum"]


def test_a_sum_of_nothing_is_written():
    assert written(lambda x: jnp.sum(x * x, 0), jax.ShapeDtypeStruct((0, 4), jnp.float32)) == ["reduce_sum"]


def test_a_sum_is_negated_rather_than_what_it_sums():
    assert written(lambda x, y: jnp.sum(-(x * y), 0), X, X) == ["mul", "reduce_sum"]


def test_a_sum_is_written_before_it_is_spread():
    """Beside another array: the same array would close a diamond, and be one kernel."""
    assert "reduce_sum" in written(lambda x, y: y * jnp.sum(x, -1, keepdims=True), X, X)


def test_a_sum_is_written_before_it_meets_another_array():
    stack = jax.ShapeDtypeStruct((8, *X.shape), jnp.float32)
    assert written(lambda xs, y: jnp.sum(xs, 0) * y, stack, X) == ["reduce_sum", "mul"]


def test_rows_of_nothing_are_lowered_like_others():
    assert written(jax.nn.softmax, jax.ShapeDtypeStruct((4, 0), jnp.float32))


@pytest.mark.parametrize("readers", [2, 5])
def test_fusing_never_writes_more(readers):
    fun = lambda x: tuple(jnp.flip(x - 1.0, i % 2) * float(i + 2) for i in range(readers))
    assert len(written(fun, X)) == readers


def test_a_softmax_leaves_its_exponentials_to_its_gradient():
    """The kernel over its rows ends with them: compiled for an H200, they are written once and read three times."""

    def weights(scores):
        rows, columns = (jax.lax.broadcasted_iota(jnp.float32, scores.shape, axis) for axis in (0, 1))
        scaled = scores.astype(jnp.float32) / 8.0
        return jax.nn.softmax(jnp.where(rows >= columns, scaled, -1e9)).astype(jnp.bfloat16)

    def fun(x, w, ct):
        mixed, back = jax.vjp(weights, x @ w)
        return mixed, back(ct)[0]

    half = lambda *dims: jax.ShapeDtypeStruct(dims, jnp.bfloat16)
    names = written(fun, half(16384, 1024), half(1024, 1024), half(16384, 1024))
    assert names.count("exp") == 1 and names.count("dot_general") == 1


def layers(number):
    """Equal layers, as operations."""

    def fun(x, w):
        for _ in range(number):
            x = jax.nn.gelu(x - x.mean(-1, keepdims=True)) @ w
        return x

    return lower(jax.make_jaxpr(fun)(X, W).jaxpr, H200.backend)


def test_equal_layers_are_fused_once():
    known = KnownBodies()
    fuse(layers(2), H200, known)
    met = len(known.fused_before.islands)
    fuse(layers(6), H200, known)
    assert len(known.fused_before.islands) == met


def test_what_is_known_of_islands_changes_no_kernel():
    known = KnownBodies()
    fuse(layers(2), H200, known)
    program = layers(5)
    alone, alike = fuse(program, H200), fuse(program, H200, known)
    assert alike.kernels == alone.kernels
    assert alike.buffers_read == alone.buffers_read
    assert alike.loops == alone.loops


def test_constants_are_made_where_they_are_read():
    fun = lambda x, y: (jnp.maximum(x, 0.0) * jnp.where(y > 0.5, y, 0.0), jnp.maximum(y, 0.0) + x)
    program = lower(jax.make_jaxpr(fun)(X, X).jaxpr, H200.backend)
    fusion = fuse(program, H200)
    constants = {index for index, op in enumerate(program.ops) if op.constant is not None}
    assert constants and constants.isdisjoint(fusion.kernels)
    assert all(constants.isdisjoint(read) for read in fusion.buffers_read.values())
