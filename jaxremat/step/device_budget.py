"""What a step may take of a device: what its allocator gives, less a margin."""

from __future__ import annotations

import jax

from jaxremat.backends.devices import Device, resolve_target
from jaxremat.base.budget import format_bytes
from jaxremat.base.errors import ArgumentError

MARGIN = 0.05
"""For fragmentation and the runtime's own buffers: the share that XLA leaves free itself when it schedules for a limit
(`xla_gpu_memory_limit_slop_factor`, 95, in `xla/debug_options_flags.cc`)."""


def device_budget_bytes(device: Device) -> int:
    """Bytes that a program may take of a device.

    A device that is there says what its allocator gives (`memory_stats`); of one that is not, it is its memory times
    the part that the runtime's pool takes by default.

    Raises:
      ArgumentError: where nobody knows, as on a CPU.
    """
    given = _allocator_bytes(device) or device.pool_bytes
    if not given:
        raise ArgumentError(
            f"budget='device' is not known for {device.name}: its memory is shared with all that runs on the machine."
            " Give bytes, such as '8GiB', or a target with memory of its own"
        )
    return int((1 - MARGIN) * given)


def device_sentence(device: Device) -> str:
    """Where the number comes from."""
    given = _allocator_bytes(device)
    source = "its allocator gives" if given else "the default pool takes of its memory"
    return f"{format_bytes(given or device.pool_bytes)} that {source}, less {MARGIN:.0%}"


def _allocator_bytes(device: Device) -> int:
    """What the allocator of a device that is there gives, the least of several alike; 0 where it is not there."""
    if jax.default_backend() == "cpu" or resolve_target(None) != device:
        return 0
    stats = [d.memory_stats() or {} for d in jax.local_devices()]
    return min(int(each.get("bytes_limit", 0)) for each in stats)
