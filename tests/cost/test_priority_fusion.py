"""What a GPU's compiler fuses, as the model has it; compiled programs are asked in tests/aot/test_gpu_rules.py."""

import jax
import jax.numpy as jnp
import pytest
from fused_programs import H200, written

from jaxremat.cost.bodies import KnownBodies
from jaxremat.cost.fusion import fuse
from jaxremat.cost.hlo_model import lower
from jaxremat.cost.kernel_graph import KernelGraph

X, W = jax.ShapeDtypeStruct((2048, 1024), jnp.float32), jax.ShapeDtypeStruct((1024, 1024), jnp.float32)


def test_a_cheap_value_is_made_again_by_each_loop():
    fun = lambda x: (y := x * 3.0 + 1.0, y[::-1] * 2.0, jnp.sum(y * y, 0))[1:]
    assert written(fun, X) == ["mul", "reduce_sum"]


def test_an_exponential_is_made_again_where_that_moves_fewer_bytes():
    assert "exp" not in written(lambda x: (jnp.exp(x)[::-1] * 2.0, jnp.exp(x) + 1.0), X)


def test_a_hyperbolic_tangent_is_written_once():
    assert "tanh" in written(lambda x: (jnp.tanh(x)[::-1] * 2.0, jnp.tanh(x) + 1.0), X)


def test_a_softmax_is_written_before_it_is_summed_over_rows():
    assert "div" in written(lambda x: jnp.sum(jax.nn.softmax(x), 0), X)


def test_a_sum_of_columns_reads_what_it_sums():
    assert written(lambda x, y: jnp.sum(x * y, 0), X, X) == ["mul", "reduce_sum"]


def test_a_sum_is_negated_rather_than_what_it_sums():
    assert written(lambda x, y: jnp.sum(-(x * y), 0), X, X) == ["mul", "reduce_sum"]


def test_a_sum_is_written_before_it_is_spread():
    """Beside another array: the same array would close a diamond, and be one kernel."""
    assert "reduce_sum" in written(lambda x, y: y * jnp.sum(x, -1, keepdims=True), X, X)


@pytest.mark.parametrize("readers", [2, 5])
def test_fusing_never_writes_more(readers):
    fun = lambda x: tuple(jnp.flip(x - 1.0, i % 2) * float(i + 2) for i in range(readers))
    assert len(written(fun, X)) == readers


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


def test_a_reduction_that_no_reader_can_run_ties_nothing_together(monkeypatch):
    """Sums over a batch are read with other arrays: no kernel is another one for it, and fewer are looked at as one."""

    def fun(x, w):
        for _ in range(3):
            y = x @ w
            centred = y - y.mean(0, keepdims=True)
            x = jax.nn.relu(centred * jax.lax.rsqrt((centred * centred).mean(0, keepdims=True) + 1e-6)) + x
        return jnp.sum(x * x)

    program = lower(jax.make_jaxpr(jax.grad(fun))(X, W).jaxpr, H200.backend)
    apart, together = KnownBodies(), KnownBodies()
    found = fuse(program, H200, apart)
    monkeypatch.setattr(KernelGraph, "may_end_in_readers", lambda *_: True)
    assert fuse(program, H200, together).buffers_read == found.buffers_read
    largest = [max(len(facts) for facts in known.fused_before.islands) for known in (apart, together)]
    assert largest[0] < largest[1]


def test_constants_are_made_where_they_are_read():
    fun = lambda x, y: (jnp.maximum(x, 0.0) * jnp.where(y > 0.5, y, 0.0), jnp.maximum(y, 0.0) + x)
    program = lower(jax.make_jaxpr(fun)(X, X).jaxpr, H200.backend)
    fusion = fuse(program, H200)
    constants = {index for index, op in enumerate(program.ops) if op.constant is not None}
    assert constants and constants.isdisjoint(fusion.kernels)
    assert all(constants.isdisjoint(read) for read in fusion.buffers_read.values())


@pytest.mark.parametrize("kind", ["add", "set"])
def test_what_is_scattered_into_is_written_before(kind):
    """A scatter writes into a buffer that is there, even of zeros."""
    places, rows = jax.ShapeDtypeStruct((64,), jnp.int32), jax.ShapeDtypeStruct((64, 1024), jnp.float32)
    scattered = lambda places, rows: getattr(jnp.zeros((2048, 1024)).at[places], kind)(rows * 2.0)
    program = lower(jax.make_jaxpr(scattered)(places, rows).jaxpr, H200.backend)
    fusion = fuse(program, H200, KnownBodies())
    zeros = [kernel for kernel in fusion.kernels if program.ops[kernel].shape == (2048, 1024)]
    assert len(zeros) == 2 and program.ops[zeros[0]].kind == "broadcast"
