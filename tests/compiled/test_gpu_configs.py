"""GPUs that are not there, as XLA is told of them: the same facts as in the table of devices."""

import re

import pytest

from jaxremat.backends.devices import DEVICES
from jaxremat.compiled.gpu_configs import GPU_SHAPES, target_config

GPUS = [name for name, device in DEVICES.items() if device.platform == "cuda"]


def test_every_gpu_of_the_table_can_be_described():
    assert set(GPU_SHAPES) == set(GPUS)


@pytest.mark.parametrize("name", GPUS)
def test_a_description_agrees_with_the_table(name):
    text, device, shape = target_config(name), DEVICES[name], GPU_SHAPES[name]
    number = lambda field: float(re.search(rf"\b{field}: ([\d.]+)", text)[1])
    assert number("core_count") == device.cores
    assert number("memory_bandwidth") == pytest.approx(device.bandwidth_bytes_per_second, rel=0.01)  # sheets round
    assert 0.9 <= number("device_memory_size") / device.memory_bytes <= 1.1
    assert f"cuda_compute_capability {{ major: {shape.capability[0]} minor: {shape.capability[1]} }}" in text
    assert number("shared_memory_per_block_optin") == number("shared_memory_per_core") - 1024


def test_braces_are_balanced():
    for name in GPUS:
        assert target_config(name).count("{") == target_config(name).count("}")
