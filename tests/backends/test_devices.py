"""The device table and how targets are named."""

import types

import jax
import jax.numpy as jnp
import pytest

from jaxremat.backends.devices import DEVICES, resolve_target
from jaxremat.backends.memory import MARGIN, usable_bytes
from jaxremat.base.errors import ArgumentError, JaxrematError

NAMES = ("cpu", "h200", "h100", "gh200", "a100", "b200", "l4", "tpu-v5e", "tpu-v5p", "tpu-v6e")


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


@pytest.mark.parametrize(
    ("given", "near"),
    {
        "v5e": "tpu-v5e",
        "H-200": "h200",
        "tpuv6e": "tpu-v6e",
        "a10": "a100",
        "gpu": "h100",
        "CUDA": "h100",
        "tpu": "tpu-v5e",
    }.items(),
)
def test_near_misses_are_suggested(given, near):
    with pytest.raises(ArgumentError, match=f"did you mean '{near}'"):
        resolve_target(given)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("NVIDIA H200", "h200"),
        ("NVIDIA GH200 480GB", "gh200"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("TPU v5 lite", "tpu-v5e"),
    ],
)
def test_real_devices_are_recognised_by_their_kind(kind, name, monkeypatch):
    real = types.SimpleNamespace(platform="tpu" if "TPU" in kind else "gpu", device_kind=kind)
    monkeypatch.setattr(jax, "devices", lambda: [real])
    assert resolve_target(None).name == name


def test_every_device_but_a_cpu_has_a_host_and_a_pool():
    cpu, *others = DEVICES.values()
    assert cpu.host_bytes_per_second is None and cpu.pool_bytes == 0
    for device in others:
        assert device.host_bytes_per_second < device.bandwidth_bytes_per_second
        assert 0.7 * device.memory_bytes < device.pool_bytes < device.memory_bytes
    assert DEVICES["gh200"].host_bytes_per_second > 5 * DEVICES["h200"].host_bytes_per_second, "NVLink to the host"


def test_an_absent_device_gives_its_pool_less_a_margin(monkeypatch):
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
    for device in (DEVICES["h200"], DEVICES["tpu-v5e"]):
        assert usable_bytes(device) == int((1 - MARGIN) * device.pool_bytes)


def test_the_environment_sets_the_pool_of_a_gpu_and_of_nothing_else(monkeypatch):
    gpu, tpu = DEVICES["h200"], DEVICES["tpu-v5e"]
    before = usable_bytes(tpu)
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.9")
    assert usable_bytes(gpu) == int((1 - MARGIN) * int(0.9 * gpu.memory_bytes))
    assert usable_bytes(tpu) == before


@pytest.mark.parametrize(("kind", "tried"), [("NVIDIA H200", ("h200",)), ("NVIDIA L4", ("l4",)), ("cpu", ())])
def test_kernels_are_tried_out_on_the_device_that_is_here(monkeypatch, kind, tried):
    platform = "cpu" if kind == "cpu" else "gpu"
    monkeypatch.setattr(jax, "devices", lambda: [types.SimpleNamespace(platform=platform, device_kind=kind)])
    assert tuple(name for name in NAMES if resolve_target(name).backend.library_products) == tried
    assert resolve_target(None) == resolve_target(kind.split()[-1].lower())
