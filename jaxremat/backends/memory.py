"""How many bytes a program may take on a device."""

from __future__ import annotations

import os

import jax

from jaxremat.backends.devices import Device, resolve_target

MARGIN = 0.02
"""Part of the pool that is left to fragmentation and the runtime's own buffers."""
_DEFAULT_FRACTION = 0.75  # XLA_PYTHON_CLIENT_MEM_FRACTION, JAX's documentation on GPU memory allocation


def usable_bytes(device: Device) -> int:
    """Bytes that the device's allocator gives, less the margin.

    A device of this machine is asked (`memory_stats()["bytes_limit"]`); for one that is absent it is the part of its
    memory that JAX takes by default; on the CPU it is the machine's memory.
    """
    return int((1 - MARGIN) * _pool_bytes(device))


def _pool_bytes(device: Device) -> int:
    if device.platform == "cpu":
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    here = jax.devices()[0]
    if resolve_target(None).name == device.name and (stats := here.memory_stats()):
        return int(stats["bytes_limit"])
    fraction = float(os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION", _DEFAULT_FRACTION))
    return int(fraction * device.memory_bytes)
