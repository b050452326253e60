"""The devices that plans are made for: speed, bandwidth and memory, from the vendors' data sheets."""

from __future__ import annotations

import dataclasses
import re

import jax
import numpy as np

from jaxremat.base.errors import ArgumentError


@dataclasses.dataclass(frozen=True)
class Device:
    """One accelerator, or a processor core pair.

    Attributes:
      name: how targets are named, such as "h200".
      platform: "cpu", "cuda" or "tpu".
      matrix_flops_per_second: peak of contractions, by bytes per element (1, 2, 4, 8).
      vector_flops_per_second: peak of element-wise work.
      bandwidth_bytes_per_second: to and from main memory.
      memory_bytes: of one device; 0 where it depends on the machine.
      launch_seconds: least time of one kernel.
      kind: pattern of `jax.Device.device_kind` for the real device.
    """

    name: str
    platform: str
    matrix_flops_per_second: tuple[float, float, float, float]
    vector_flops_per_second: float
    bandwidth_bytes_per_second: float
    memory_bytes: int
    launch_seconds: float
    kind: str

    def matrix_flops(self, dtype) -> float:
        """Peak FLOP/s of contractions of a dtype."""
        rank = int(np.ceil(np.log2(max(np.dtype(dtype).itemsize, 1))))
        return self.matrix_flops_per_second[min(rank, 3)]


def _gpu(name: str, tera: tuple[float, float, float, float], vector: float, tbps: float, gigabytes: int, kind: str):
    peaks = (tera[0] * 1e12, tera[1] * 1e12, tera[2] * 1e12, tera[3] * 1e12)
    return Device(name, "cuda", peaks, vector * 1e12, tbps * 1e12, gigabytes * 10**9, 4e-6, kind)


def _tpu(name: str, int8: float, bfloat16: float, tbps: float, gibibytes: int, kind: str):
    tera = 1e12 * bfloat16
    return Device(
        name, "tpu", (1e12 * int8, tera, tera / 6, tera / 60), tera / 50, tbps * 1e12, gibibytes * 2**30, 1e-6, kind
    )


DEVICES: dict[str, Device] = {
    device.name: device
    for device in (
        Device("cpu", "cpu", (1.5e11, 1.5e11, 1.5e11, 7.5e10), 2e10, 2e10, 0, 1e-6, "cpu"),
        _gpu("h200", (1979, 989, 495, 67), 67, 4.8, 141, "H200"),
        _gpu("h100", (1979, 989, 495, 67), 67, 3.35, 80, "H100|H800"),
        _gpu("a100", (624, 312, 156, 19.5), 19.5, 2.04, 80, "A100|A800"),
        _gpu("b200", (4500, 2250, 1125, 37), 75, 8.0, 180, "B200|GB200"),
        _gpu("l4", (242, 121, 60, 0.49), 30, 0.3, 24, r"L4\b"),
        _tpu("tpu-v5e", 394, 197, 0.82, 16, "v5 ?lite|v5e"),
        _tpu("tpu-v5p", 918, 459, 2.76, 95, r"v5p|v5\b"),
        _tpu("tpu-v6e", 1836, 918, 1.64, 32, "v6"),
    )
}
"""Targets by name. Dense rates, no sparsity; float32 contractions count at the TF32 rate on GPUs."""

_FALLBACK = {"cpu": "cpu", "gpu": "h100", "cuda": "h100", "rocm": "h100", "tpu": "tpu-v5e"}


def resolve_target(name: str | None = None) -> Device:
    """The device of a target's name, or of the default backend.

    Args:
      name: one of `DEVICES`, or None. For an unknown kind of default device, a common one of its platform stands in.

    Raises:
      ArgumentError: for a name that is not in the table.
    """
    if name is None:
        return _of_backend(jax.devices()[0])
    key = str(name).lower()
    if key not in DEVICES:
        raise ArgumentError(f"target={name!r} is not known: use one of {', '.join(DEVICES)}, or None for this machine")
    return DEVICES[key]


def _of_backend(device: jax.Device) -> Device:
    for candidate in DEVICES.values():
        same = candidate.platform == {"gpu": "cuda"}.get(device.platform, device.platform)
        if same and re.search(candidate.kind, device.device_kind, re.IGNORECASE):
            return candidate
    return DEVICES[_FALLBACK.get(device.platform, "cpu")]
