"""FLOPs, bytes and seconds against counts by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from jaxremat.backends.devices import resolve_target
from jaxremat.cost.flops import equation_bytes, equation_flops, equation_seconds, program_flops

f32 = jnp.float32


def shape(*dims, dtype=f32):
    return jax.ShapeDtypeStruct(dims, dtype)


def flops(fun, *args, **kwargs):
    return program_flops(jax.make_jaxpr(fun)(*args).jaxpr, **kwargs)


def first(fun, *args):
    return jax.make_jaxpr(fun)(*args).jaxpr.eqns[0]


def test_matrix_product():
    assert flops(jnp.dot, shape(8, 16), shape(16, 32)) == 2 * 8 * 16 * 32


def test_batched_contraction():
    attention = lambda q, k: jnp.einsum("bqhd,bkhd->bhqk", q, k)
    assert flops(attention, shape(2, 5, 3, 7), shape(2, 11, 3, 7), matrix_only=True) == 2 * 2 * 3 * 5 * 11 * 7


def test_convolution_and_groups():
    conv = lambda x, k, groups: lax.conv_general_dilated(
        x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
    )
    assert flops(lambda x, k: conv(x, k, 1), shape(2, 8, 8, 4), shape(3, 3, 4, 6)) == 2 * (2 * 8 * 8 * 6) * 3 * 3 * 4
    assert flops(lambda x, k: conv(x, k, 4), shape(2, 8, 8, 4), shape(3, 3, 1, 8)) == 2 * (2 * 8 * 8 * 8) * 3 * 3


def test_ragged_product_counts_every_row_once():
    fun = lambda x, w, sizes: lax.ragged_dot(x, w, sizes)
    assert flops(fun, shape(12, 5), shape(3, 5, 7), shape(3, dtype=jnp.int32), matrix_only=True) == 2 * 12 * 5 * 7


def test_scan_multiplies_by_its_length():
    step = lambda x, w: lax.scan(lambda c, _: (c @ w, None), x, None, length=9)[0]
    assert flops(step, shape(4, 4), shape(4, 4), matrix_only=True) == 9 * 2 * 4**3


def test_cond_takes_the_worst_branch():
    fun = lambda p, x: lax.cond(p, lambda x: x @ x @ x, lambda x: x @ x, x)
    assert flops(fun, shape(dtype=bool), shape(4, 4), matrix_only=True) == 2 * 2 * 4**3


def test_calls_and_custom_rules_are_counted_once():
    @jax.custom_vjp
    def product(x):
        return x @ x

    product.defvjp(lambda x: (x @ x, x), lambda x, g: (g @ x.T,))
    for fun in (jax.jit(lambda x: x @ x), jax.checkpoint(lambda x: x @ x), product):
        assert flops(fun, shape(4, 4), matrix_only=True) == 2 * 4**3


def test_transcendental_functions_weigh_more():
    assert flops(jnp.tanh, shape(100)) > flops(jnp.negative, shape(100)) == 100


def test_reductions_read_their_operand():
    eqn = first(lambda x: lax.reduce_sum_p.bind(x, axes=(0,), out_sharding=None), shape(10, 10))
    assert equation_flops(eqn) == 100 and equation_bytes(eqn) == 4 * (100 + 10)


@pytest.mark.parametrize(
    "fun, args",
    [
        (jnp.cumsum, (shape(64),)),
        (jnp.sort, (shape(64),)),
        (jnp.fft.fft, (shape(64, dtype=jnp.complex64),)),
        (jnp.linalg.cholesky, (shape(8, 8),)),
        (lambda a, b: jax.scipy.linalg.solve_triangular(a, b), (shape(8, 8), shape(8, 3))),
        (lambda x, i: x.at[i].add(1.0), (shape(64), shape(4, dtype=jnp.int32))),
        (lambda x: lax.while_loop(lambda c: c[0, 0] < 1, lambda c: c @ c, x), (shape(4, 4),)),
        (lambda x: lax.reduce_window(x, 0.0, lax.add, (2, 2), (2, 2), "VALID"), (shape(8, 8),)),
    ],
)
def test_every_family_has_a_positive_cost(fun, args):
    jaxpr = jax.make_jaxpr(fun)(*args).jaxpr
    assert program_flops(jaxpr) > 0
    assert sum(equation_seconds(eqn, resolve_target("h200")) for eqn in jaxpr.eqns) > 0


def test_seconds_follow_the_roofline():
    device = resolve_target("h200")
    product = first(
        lambda x, y: lax.dot(x, y), shape(4096, 4096, dtype=jnp.bfloat16), shape(4096, 4096, dtype=jnp.bfloat16)
    )
    addition = first(lax.add, shape(2**26), shape(2**26))
    assert equation_seconds(product, device) == pytest.approx(2 * 4096**3 / 989e12 + device.launch_seconds)
    assert equation_seconds(addition, device) == pytest.approx(3 * 4 * 2**26 / 4.8e12 + device.launch_seconds)


def test_reshapes_are_free():
    eqn = first(lambda x: lax.reshape(x, (4, 25)), shape(100))
    assert equation_bytes(eqn) == 0 and equation_seconds(eqn, resolve_target("cpu")) == 0
