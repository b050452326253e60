"""Compiling for hardware that is not there."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxremat.backends.devices import resolve_target
from jaxremat.base.errors import TargetError
from jaxremat.compiled.compile import compile_gradient
from jaxremat.compiled.targets import target_devices
from jaxremat.cost.memory import estimate_memory

pytestmark = pytest.mark.aot

W = jax.ShapeDtypeStruct((512, 512), jnp.bfloat16)
X = jax.ShapeDtypeStruct((1024, 512), jnp.bfloat16)


def loss(w, x):
    return jnp.mean(jax.nn.softmax(jnp.tanh(x @ w) @ w) ** 2)


@pytest.mark.parametrize("target", ["h200", "h100", "a100", "b200", "l4"])
def test_a_gradient_is_compiled_for_gpus(target):
    report = compile_gradient(loss, (W, X), target=target)
    assert report.argument_bytes == 2 * (512 * 512 + 1024 * 512)
    assert report.temp_bytes > 0 and report.target == target


@pytest.mark.parametrize("target", ["tpu-v5e", "tpu-v5p", "tpu-v6e"])
def test_tpus_and_nothing_of_them_stays_in_the_environment(target):
    environment = dict(os.environ)
    report = compile_gradient(loss, (W, X), target=target)
    assert report.argument_bytes >= 2 * (512 * 512 + 1024 * 512)
    assert dict(os.environ) == environment


def test_sharded_arguments_count_the_share_of_one_tpu():
    mesh = Mesh(np.asarray(target_devices("tpu-v5e")), ("data",))
    by_row = jax.ShapeDtypeStruct(X.shape, X.dtype, sharding=NamedSharding(mesh, PartitionSpec("data")))
    everywhere = jax.ShapeDtypeStruct(W.shape, W.dtype, sharding=NamedSharding(mesh, PartitionSpec()))
    report = compile_gradient(loss, (everywhere, by_row), target="tpu-v5e")
    assert mesh.size == 4
    assert report.argument_bytes == 2 * (512 * 512 + 1024 * 512 // 4)


def test_more_shards_than_tpus_are_refused():
    mesh = Mesh(np.asarray(target_devices("tpu-v5e")), ("data",))
    x = jax.ShapeDtypeStruct(X.shape, X.dtype, sharding=NamedSharding(mesh, PartitionSpec("data")))
    with pytest.raises(TargetError, match="4 devices"):
        compile_gradient(loss, (W, x), target="h200")


def test_the_estimate_for_a_gpu_is_near_the_compiled_bytes():
    weights = [(jax.ShapeDtypeStruct((512, 2048), jnp.float32), jax.ShapeDtypeStruct((2048, 512), jnp.float32))] * 4
    x = jax.ShapeDtypeStruct((4096, 512), jnp.float32)

    def residual(weights, x):
        for up, down in weights:
            x = x + jax.nn.gelu(jax.nn.standardize(x) @ up) @ down
        return (x**2).mean()

    estimate = estimate_memory(jax.make_jaxpr(jax.value_and_grad(residual))(weights, x).jaxpr, resolve_target("h200"))
    compiled = compile_gradient(residual, (weights, x), target="h200")
    assert estimate.peak_bytes == pytest.approx(compiled.peak_bytes, rel=0.2)
