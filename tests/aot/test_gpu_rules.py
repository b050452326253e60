"""Each rule of XLA:GPU that the model follows, against a program compiled for a GPU that is not there."""

from collections import Counter

import jax
import jax.numpy as jnp
import pytest
from compiled_buffers import compiled_buffers, modelled_buffers
from jax.sharding import SingleDeviceSharding

from jaxremat.backends.devices import resolve_target
from jaxremat.compiled.targets import target_devices

pytestmark = pytest.mark.aot

X = jax.ShapeDtypeStruct((2048, 1024), jnp.float32)
HALF = jax.ShapeDtypeStruct((2048, 1024), jnp.bfloat16)
W = jax.ShapeDtypeStruct((1024, 1024), jnp.bfloat16)
FILL = 4 * 2048 * 1024

RULES = {
    "a cheap value is made again by each loop": (
        lambda x: ((y := x * 3.0 + 1.0)[::-1] * 2.0, y + 5.0), (X,), [FILL] * 2,
    ),
    "an exponential is made again": (lambda x: (jnp.exp(x)[::-1] * 2.0, jnp.exp(x) + 1.0), (X,), [FILL] * 2),
    "a hyperbolic tangent is written once": (
        lambda x: (jnp.tanh(x)[::-1] * 2.0, jnp.tanh(x) + 1.0), (X,), [FILL] * 3,
    ),
    "a product takes what it alone reads": (lambda x, w: jnp.exp(x * 2) @ w, (HALF, W), [FILL // 2]),
    "a product does not take what reads two arrays": (
        lambda x, y, w: (x * y) @ w, (HALF, HALF, W), [FILL // 2] * 2,
    ),
    "a softmax is one kernel": (
        lambda x, w: jax.nn.softmax((x @ w).astype(jnp.float32)).astype(jnp.bfloat16) @ w, (HALF, W), [FILL // 2] * 3,
    ),
}  # fmt: skip


@pytest.mark.parametrize("rule", RULES)
def test_what_is_written(rule):
    fun, args, expected = RULES[rule]
    device = resolve_target("h200")
    place = SingleDeviceSharding(target_devices("h200")[0])
    placed = [jax.ShapeDtypeStruct(arg.shape, arg.dtype, sharding=place) for arg in args]
    text = jax.jit(fun).trace(*placed).lower(lowering_platforms=("cuda",)).compile().as_text()
    large = lambda sizes: Counter(size for size in sizes if size >= FILL // 4)
    assert large(modelled_buffers(fun, args, device)) == Counter(expected)
    assert large(compiled_buffers(text, several=True)) == Counter(expected)
