"""Products in parts, lowered; compiled programs are asked in tests/aot/test_gpu_rules.py."""

import jax
import jax.numpy as jnp
import pytest

from jaxremat.backends.devices import DEVICES
from jaxremat.cost.fused import reachable
from jaxremat.cost.hlo_model import lower

H200 = DEVICES["h200"]


def operations(fun, *args, device=H200):
    program = lower(jax.make_jaxpr(fun)(*args).jaxpr, device)
    return [program.ops[index] for index in reachable(program) if program.ops[index].kind != "input"]


def array(*dims, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(dims, dtype)


def gradient_of_weights(x, y):
    return x.T @ y


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_parts_are_written_in_full_precision_and_summed_where_they_are_read(dtype):
    made = operations(gradient_of_weights, *[array(4096, 256, dtype=dtype)] * 2)
    multiplied, summed, *rounded = made
    assert multiplied.kind == "dot" and multiplied.size_bytes == 16 * 256 * 256 * 4
    assert multiplied.flops == 2 * 4096 * 256 * 256
    assert summed.kind == "window" and summed.window == 16 and summed.size_bytes == 256 * 256 * 4
    assert [op.kind for op in rounded] == ["convert_element_type"] * (dtype == jnp.bfloat16)
    assert made[-1].size_bytes == 256 * 256 * jnp.dtype(dtype).itemsize


def test_many_parts_are_summed_by_a_kernel_of_their_own():
    multiplied, summed = operations(gradient_of_weights, *[array(65536, 64)] * 2)
    assert summed.kind == "reduce" and summed.partition == (1, 128, 64 * 64) == multiplied.shape


def test_what_is_contracted_is_filled_up():
    kinds = [(op.kind, op.size_bytes) for op in operations(gradient_of_weights, *[array(500, 256)] * 2)]
    assert kinds[:2] == [("pad", 512 * 256 * 4)] * 2


@pytest.mark.parametrize("device", [DEVICES["cpu"], DEVICES["tpu-v5e"]], ids=["cpu", "tpu"])
def test_only_gpus_split_products(device):
    assert "window" not in [op.kind for op in operations(gradient_of_weights, *[array(4096, 256)] * 2, device=device)]


def test_whole_numbers_are_not_split():
    assert "window" not in [op.kind for op in operations(gradient_of_weights, *[array(4096, 256, dtype=jnp.int32)] * 2)]
