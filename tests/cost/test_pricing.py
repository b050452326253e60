"""What equations are priced at."""

import jax
import jax.numpy as jnp
import pytest

from jaxremat.backends.devices import DEVICES
from jaxremat.cost.pricing import program_seconds

CPU = DEVICES["cpu"]


def seconds(fun):
    return program_seconds(jax.make_jaxpr(fun)(jnp.zeros((1, 512, 512))).jaxpr, CPU)


def behind_a_barrier(x):
    """As what enters barriers is emitted: without the axes of length one, which are added again behind it."""
    return jax.lax.expand_dims(jax.lax.optimization_barrier(jax.lax.squeeze(x, (0,))), (0,))


def test_a_barrier_takes_nothing_beside_the_kernels_that_it_keeps_apart():
    apart = seconds(lambda x: jnp.tanh(x)) + seconds(lambda x: jnp.sin(x))
    assert seconds(lambda x: jnp.sin(behind_a_barrier(jnp.tanh(x)))) == pytest.approx(apart)


def test_what_is_spread_is_written():
    assert seconds(lambda x: jnp.broadcast_to(x[:, :1], x.shape)) >= 4 * 512**2 / CPU.bandwidth_bytes_per_second
