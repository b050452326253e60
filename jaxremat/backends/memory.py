"""How many bytes a program may take on a device."""

from __future__ import annotations

import os

import jax

from jaxremat.backends.devices import Device, resolve_target

MARGIN = 0.05
"""Part of the pool that is left to fragmentation and the runtime's own buffers, as XLA's scheduler for GPUs leaves it:
`xla_gpu_memory_limit_slop_factor` is 95 by default."""


def usable_bytes(device: Device) -> int:
    """Bytes that the device's allocator gives, less the margin.

    A device of this machine is asked (`memory_stats()["bytes_limit"]`); of an absent one it is the pool that
    its runtime takes by default, or as the environment says; on the CPU it is the machine's memory.
    """
    return int((1 - MARGIN) * _pool_bytes(device))


def _pool_bytes(device: Device) -> int:
    if device.platform == "cpu":
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    here = jax.devices()[0]
    if resolve_target(None).name == device.name and (stats := here.memory_stats()):
        return int(stats["bytes_limit"])
    fraction = os.environ.get(device.backend.pool_variable)
    return device.pool_bytes if fraction is None else int(float(fraction) * device.memory_bytes)
