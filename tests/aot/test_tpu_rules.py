"""Each rule of XLA:TPU that the model follows, against a program compiled for a TPU that is not there."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import SingleDeviceSharding

from jaxremat.backends.devices import resolve_target
from jaxremat.compiled.targets import compiler_lock, target_devices
from jaxremat.cost.memory import estimate_memory

pytestmark = pytest.mark.aot

V5E = resolve_target("tpu-v5e")
MIB = 2**20
WIDE, WEIGHTS = (jax.ShapeDtypeStruct(dims, jnp.bfloat16) for dims in ((131072, 1024), (1024, 1024)))
BESIDE, BEYOND, NARROW = (jax.ShapeDtypeStruct(dims, jnp.float32) for dims in ((4096, 1024), (65536, 1024), (2**24, 5)))


def kept_apart(x):
    """Written whole, and read by two sums."""
    made = lax.optimization_barrier(x * 2.0)
    return jnp.sum(made, 0), jnp.sum(lax.optimization_barrier(made) * made, 0)


RULES = {
    "a product computes what it reads": (lambda x, w: (jnp.tanh(x) * x) @ w, (WIDE, WEIGHTS), 0),
    "what fits beside main memory is placed there": (kept_apart, (BESIDE,), 0),
    "what does not fit there is in main memory": (kept_apart, (BEYOND,), 256 * MIB),
    "narrow arrays fill up their tiles": (kept_apart, (NARROW,), 4 * 2**24 * 8),
}


@pytest.mark.parametrize("rule", RULES)
def test_what_is_in_main_memory(rule):
    fun, args, expected = RULES[rule]
    place = SingleDeviceSharding(target_devices("tpu-v5e")[0])
    placed = [jax.ShapeDtypeStruct(arg.shape, arg.dtype, sharding=place) for arg in args]
    with compiler_lock(V5E):
        compiled = jax.jit(fun).trace(*placed).lower(lowering_platforms=("tpu",)).compile()
    assert estimate_memory(jax.make_jaxpr(fun)(*args).jaxpr, V5E).temp_bytes == pytest.approx(expected, abs=MIB)
    assert compiled.memory_analysis().temp_size_in_bytes == pytest.approx(expected, abs=MIB)
