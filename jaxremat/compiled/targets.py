"""Devices to compile for: this machine's own, or the description of one that is not there."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies

from jaxremat.backends.devices import DEVICES, Device, is_this_machines, resolve_target
from jaxremat.base.errors import JaxrematError, TargetError
from jaxremat.compiled.gpu_configs import target_config

_TPU_TOPOLOGIES = {
    "tpu-v5e": ("v5e:2x2", "v5litepod-4"),
    "tpu-v5p": ("v5p:2x2x1", "v5p-8"),
    "tpu-v6e": ("v6e:2x2", "v6e-4"),
}
_PIP_LINES = {
    "cuda": 'pip install "jax[cuda12-local]" (or pip install -e ".[aot]" in a checkout)',
    "tpu": 'pip install libtpu (or pip install -e ".[aot]" in a checkout)',
}


def target_devices(target: str | None = None) -> list[jax.Device]:
    """The devices of a target: real where this machine has them, else those of a device-less topology.

    Args:
      target: a name in `jaxremat.backends.devices.DEVICES`, or None for the default backend.

    Raises:
      ArgumentError: for an unknown name.
      TargetError: if the plugin that compiles for it is missing or refuses; the message names the pip line.
    """
    if target is None:
        return list(jax.devices())
    device = resolve_target(target)
    if device.platform == "cpu":
        return list(jax.devices("cpu"))
    if is_here(device):
        return list(jax.devices())
    _require_plugin(device)
    with compiler_lock(device):
        return list(_topology(device).devices)


def is_here(device: Device) -> bool:
    """Whether this machine has the device: programs for it are compiled as they will run."""
    return device.platform == "cpu" or is_this_machines(device.name)


def list_targets() -> list[tuple[Device, str]]:
    """Pairs (device, why not) of every target; an empty text means that it works on this machine."""
    found = []
    for name, device in DEVICES.items():
        try:
            target_devices(name)
            found.append((device, ""))
        except JaxrematError as error:
            found.append((device, str(error)))
    return found


@contextlib.contextmanager
def compiler_lock(device: Device) -> Iterator[None]:
    """Only one process at a time works with libtpu, on this machine; other compilers need no lock."""
    if device.platform != "tpu":
        yield
        return
    import fcntl  # libtpu, the only compiler that needs it, exists for Linux alone

    path = Path(tempfile.gettempdir()) / f"jaxremat-libtpu-{os.getuid()}.lock"
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)


@functools.cache
def _topology(device: Device) -> Any:
    try:
        if device.platform == "cuda":
            config = target_config(device.name)
            return topologies.get_topology_desc(platform="cuda", topology="1x1x1", target_config=config)
        topology, accelerator = _TPU_TOPOLOGIES[device.name]
        variables = {
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
            "TPU_SKIP_MDS_QUERY": "1",
            "TPU_ACCELERATOR_TYPE": accelerator,
            "TPU_WORKER_HOSTNAMES": "localhost",
        }
        with _environment(variables):
            return topologies.get_topology_desc(topology, platform="tpu")
    except Exception as error:
        reason = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
        raise TargetError(
            f"the compiler for target={device.name!r} is installed but refused: {reason}. "
            f"Check that its version matches jax {jax.__version__}: {_PIP_LINES[device.platform]}. On a machine without"
            " the device, start Python with JAX_PLATFORMS=cpu, so that JAX does not try to run on it."
        ) from error


def _require_plugin(device: Device) -> None:
    modules = {"cuda": ("jax_cuda12_plugin", "jax_cuda13_plugin"), "tpu": ("libtpu",)}[device.platform]
    if not any(importlib.util.find_spec(module) for module in modules):
        raise TargetError(
            f"target={device.name!r} needs {modules[0]}, which is not installed: {_PIP_LINES[device.platform]}"
        )


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Environment variables that are not set yet, for as long as the block runs."""
    added = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
