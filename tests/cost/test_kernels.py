"""The predicted time of compiled programs: kernels by roofline, joined where a GPU runs them as one."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from jaxremat.backends.devices import DEVICES
from jaxremat.cost.kernels import seconds_by_equation
from jaxremat.cost.memory import estimate_memory

H200 = dataclasses.replace(DEVICES["h200"], launch_seconds=0.0)
X = jax.ShapeDtypeStruct((4096, 1024), jnp.float32)
BYTES = 4 * 4096 * 1024


def seconds(fun, *args, device=H200):
    return estimate_memory(jax.make_jaxpr(fun)(*args).jaxpr, device).seconds


def test_an_element_wise_chain_is_one_kernel_that_reads_and_writes_once():
    chain = seconds(lambda x: jnp.sin(x * 2.0) + 1.0, X)
    assert chain == pytest.approx(2 * BYTES / H200.bandwidth_bytes_per_second)


def test_every_kernel_pays_its_launch():
    slow = dataclasses.replace(H200, launch_seconds=1.0)
    assert seconds(lambda x, w: (x @ w).sum(0)[None] + w, X, _square(), device=slow) == pytest.approx(3.0, rel=0.01)


def test_contractions_take_the_time_of_their_arithmetic_at_the_rate_of_their_dtype():
    wide = seconds(lambda x, w: x @ w, _image(jnp.float32), _square(4096))
    narrow = seconds(lambda x, w: x @ w, _image(jnp.bfloat16), _square(4096, jnp.bfloat16))
    flops = 2 * 32768 * 4096 * 4096
    assert wide == pytest.approx(flops / H200.matrix_flops(jnp.float32))
    assert narrow == pytest.approx(flops / H200.matrix_flops(jnp.bfloat16))


def test_kernels_that_read_the_same_are_joined_but_not_on_a_cpu():
    sums = lambda x: (x.sum(-1), (x * x).sum(-1))
    assert seconds(sums, X) == pytest.approx(BYTES / H200.bandwidth_bytes_per_second, rel=0.01)
    alone = dataclasses.replace(H200, backend=DEVICES["cpu"].backend)
    assert seconds(sums, X, device=alone) == pytest.approx(2 * BYTES / H200.bandwidth_bytes_per_second, rel=0.01)


def test_reductions_of_different_shapes_stay_apart():
    sums = lambda x: (x.sum(-1), x.sum(0))
    assert seconds(sums, X) == pytest.approx(2 * BYTES / H200.bandwidth_bytes_per_second, rel=0.01)


def test_slices_that_kernels_read_which_run_as_one_are_all_read():
    """Of four quarters two and another one, for two results a quarter as wide: five quarters are moved."""

    def fun(x):
        first, second, third, _ = jnp.split(x, 4, 1)
        made = jnp.tanh(first * second)
        return made, made * third

    assert seconds(fun, X) == pytest.approx(1.25 * BYTES / H200.bandwidth_bytes_per_second, rel=0.01)


def test_a_loop_takes_all_its_trips():
    def loop(x):
        return jax.lax.scan(lambda carry, _: (jnp.sin(carry) * 2.0, None), x, None, length=10)[0]

    assert seconds(loop, X) == pytest.approx(10 * 2 * BYTES / H200.bandwidth_bytes_per_second, rel=0.01)


def test_what_a_kernel_computes_on_the_way_takes_no_time_and_has_no_buffer():
    jaxpr = jax.make_jaxpr(lambda x, w: (x * 2.0 + 1.0) @ w)(X, _square()).jaxpr
    taken, written = seconds_by_equation(jaxpr, H200)
    by_name = {eqn.primitive.name: (t, eqn.outvars[0] in written) for eqn, t in zip(jaxpr.eqns, taken)}
    assert by_name["mul"] == (0.0, False)
    assert by_name["dot_general"][0] > 0 and by_name["dot_general"][1]


def test_a_product_has_the_buffer_and_the_time_of_a_kernel_that_computes_on():
    jaxpr = jax.make_jaxpr(lambda x, w: jnp.tanh(x @ w))(X, _square()).jaxpr
    taken, written = seconds_by_equation(jaxpr, H200)
    by_name = {eqn.primitive.name: (t, eqn.outvars[0] in written) for eqn, t in zip(jaxpr.eqns, taken)}
    assert by_name["dot_general"][0] > 0 and by_name["dot_general"][1]
    assert by_name["tanh"] == (0.0, False)


def _square(width=1024, dtype=jnp.float32):
    return jax.ShapeDtypeStruct((width, width), dtype)


def _image(dtype):
    return jax.ShapeDtypeStruct((32768, 4096), dtype)


def test_copies_over_the_link_are_no_kernels():
    """What a schedule waits for them is counted by the link."""

    def there_and_back(x):
        away = jax.device_put(jnp.sin(x), jax.memory.Space.Host)
        return jnp.cos(jax.device_put(jax.lax.optimization_barrier(away), jax.memory.Space.Device))

    slow = dataclasses.replace(H200, launch_seconds=1.0)
    assert seconds(there_and_back, X, device=slow) == pytest.approx(2.0, rel=0.01)
