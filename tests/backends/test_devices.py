"""The device table and how targets are named."""

import jax.numpy as jnp
import pytest

from jaxremat.backends.devices import DEVICES, resolve_target
from jaxremat.base.errors import ArgumentError, JaxrematError

NAMES = ("cpu", "h200", "h100", "a100", "b200", "l4", "tpu-v5e", "tpu-v5p", "tpu-v6e")


def test_every_promised_target_is_in_the_table():
    assert tuple(DEVICES) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_numbers_are_plausible(name):
    device = resolve_target(name.upper())
    assert device.name == name
    assert device.matrix_flops(jnp.bfloat16) >= device.matrix_flops(jnp.float32) >= device.matrix_flops(jnp.float64) > 0
    assert device.vector_flops_per_second > 0 and device.bandwidth_bytes_per_second > 0 and device.launch_seconds > 0
    assert device.platform == "cpu" or device.memory_bytes >= 16 * 2**30


def test_the_default_is_this_machine():
    assert resolve_target(None).platform == "cpu"


def test_unknown_names_list_the_known_ones():
    with pytest.raises(ArgumentError, match="tpu-v6e") as caught:
        resolve_target("h300")
    assert isinstance(caught.value, JaxrematError) and "h300" in str(caught.value)
