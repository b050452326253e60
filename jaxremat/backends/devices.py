"""The devices that plans are made for: speed, bandwidth and memory, from the vendors' data sheets."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from typing import Any

import jax
import numpy as np

from jaxremat.backends.backend import Backend
from jaxremat.backends.cpu import CPU
from jaxremat.backends.cuda import CUDA, CUDA_TRIED
from jaxremat.backends.measured import RATES, measured_rates
from jaxremat.backends.tpu import TPU
from jaxremat.base import compat
from jaxremat.base.errors import ArgumentError

_SUSTAINED = 0.8
"""Part of a link's rate that long copies reach: packets of PCIe carry 128 bytes behind 20 to 24 of headers and
checksums, and acknowledgements and credits take a few per cent more."""

ROWS_APART = 0.6
"""Part of the bandwidth at which a kernel reads rows that lie apart, beside the same computation on rows side by side:
the median of eight such pairs that ran on an H200, .33 to .79 (benchmarks/results/gpu.md)."""


@dataclasses.dataclass(frozen=True)
class Device:
    """One accelerator, or a processor core pair.

    Attributes:
      name: how targets are named, such as "h200".
      backend: what its platform's compiler does.
      matrix_flops_per_second: peak of contractions, by bytes per element (1, 2, 4, 8).
      vector_flops_per_second: peak of element-wise work.
      bandwidth_bytes_per_second: to and from main memory.
      memory_bytes: of one device; 0 where it depends on the machine.
      launch_seconds: least time of one kernel.
      host_bytes_per_second: to and from the host's memory, each way; None where that is the device's own.
      first_touch_seconds_per_byte: of memory that is new to a program, for the system to clear it; zero where a pool
        keeps what programs gave back, and of a CPU until it is measured.
      vector_memory_bytes: of the memory beside main memory in which the compiler places what fits; 0 where it has none.
      product_workspace_bytes: what a library's product of matrices works in.
      cores, clock_ghz: of a GPU, its streaming multiprocessors and their highest rate.
      compute_capability: of a GPU, the major number of what NVIDIA calls so: 8 is Ampere, 9 Hopper, 10 Blackwell.
      cache_bytes: of a GPU, what all of its cores share.
      kind: pattern of `jax.Device.device_kind` for the real device.
    """

    name: str
    backend: Backend
    matrix_flops_per_second: tuple[float, float, float, float]
    vector_flops_per_second: float
    bandwidth_bytes_per_second: float
    memory_bytes: int
    launch_seconds: float
    host_bytes_per_second: float | None
    kind: str
    first_touch_seconds_per_byte: float = 0.0
    vector_memory_bytes: int = 0
    product_workspace_bytes: int = 0
    cores: int = 0
    clock_ghz: float = 0.0
    compute_capability: int = 0
    cache_bytes: int = 0

    @property
    def platform(self) -> str:
        """The name of its backend: "cpu", "cuda" or "tpu"."""
        return self.backend.name

    @property
    def pool_bytes(self) -> int:
        """What the runtime's allocator hands out by default; 0 where it depends on the machine."""
        return int(self.backend.pool_fraction * self.memory_bytes)

    def is_host_memory(self, kind: str | None) -> bool:
        """Whether a kind of memory, as JAX names them, is the host's: all but pinned memory is a processor's own."""
        paged = kind == compat.PAGED_HOST_MEMORY and self.host_bytes_per_second is not None
        return kind == compat.HOST_MEMORY or paged

    @property
    def as_described(self) -> Device:
        """The device by its data sheet: that is what compilers go by, whatever was measured."""
        sheet = DEVICES.get(self.name, self)
        return dataclasses.replace(self, **{rate: getattr(sheet, rate) for rate in RATES})

    @property
    def sustained_host_bytes_per_second(self) -> float | None:
        """What long copies over the host's link reach."""
        return _SUSTAINED * self.host_bytes_per_second if self.host_bytes_per_second else None

    def first_touch_seconds(self, temp_bytes: int) -> float:
        """What one run of a program waits for the memory of its temporaries."""
        reused_bytes = self.backend.reused_bytes
        is_new = reused_bytes is not None and temp_bytes > reused_bytes
        return self.first_touch_seconds_per_byte * temp_bytes if is_new else 0.0

    @property
    def core_bytes_per_second(self) -> float:
        """What one core reads: 32 bytes per cycle; infinite where there is no such limit."""
        return 32e9 * self.clock_ghz or math.inf

    def matrix_flops(self, dtype: Any) -> float:
        """Peak FLOP/s of contractions of a dtype."""
        rank = int(np.ceil(np.log2(max(np.dtype(dtype).itemsize, 1))))
        return self.matrix_flops_per_second[min(rank, 3)]


Rates = tuple[float, float, float, float]
_HOPPER = 9  # compute capability


def _gpu(
    name: str,
    tera: Rates,
    vector: float,
    tbps: float,
    gigabytes: int,
    link: float,
    kind: str,
    cores: int,
    clock_ghz: float,
    cache_mib: float,
    compute_capability: int,
) -> Device:
    """Dense rates, no sparsity; float32 contractions count at the TF32 rate. The least time of a
    kernel is that of an empty one in a CUDA graph, where XLA puts its kernels: about 2 microseconds. cuBLAS works in 32
    MiB from Hopper on, in 4 before (openxla/xla: `gemm_rewriter.cc`)."""
    peaks = (tera[0] * 1e12, tera[1] * 1e12, tera[2] * 1e12, tera[3] * 1e12)
    memory = gigabytes * 10**9
    rates, worked_in = (peaks, vector * 1e12, tbps * 1e12), (32 if compute_capability >= _HOPPER else 4) * 2**20
    return Device(
        name, CUDA, *rates, memory, 2e-6, link * 1e9, kind, product_workspace_bytes=worked_in, cores=cores,
        clock_ghz=clock_ghz, compute_capability=compute_capability, cache_bytes=int(cache_mib * 2**20),
    )  # fmt: skip


def _tpu(
    name: str, int8: float, bfloat16: float, vector: float, tbps: float, gibibytes: int, link: float, kind: str
) -> Device:
    """float32 contractions are one bfloat16 pass at JAX's default precision (`jax.lax.Precision`); float64 is pairs of
    float32 at full precision: four products of six passes. A vector unit has four times 8 x 128 lanes, per core."""
    peaks = (1e12 * int8, 1e12 * bfloat16, 1e12 * bfloat16, 1e12 * bfloat16 / 24)
    memory, placed = gibibytes * 2**30, _VECTOR_MEMORY - _SCOPED
    rates = peaks, vector * 1e12, tbps * 1e12
    return Device(name, TPU, *rates, memory, 1e-6, link * 1e9, kind, vector_memory_bytes=placed)


_VECTOR_MEMORY = 128 * 2**20  # per core, of a v5e, v5p and v6e alike
_SCOPED = 16 * 2**20  # of that, what kernels work in: `xla_tpu_scoped_vmem_limit_kib` when it is not set
_PCIE4, _PCIE5 = 32, 64  # GB/s each way of 16 lanes; half of what data sheets call bidirectional
_NVLINK_C2C = 450  # 900 GB/s both ways together

# Two cores of a server: two units of eight float32 multiply-adds per cycle each, at 2.35 GHz; element-wise loops, whose
# loads and stores take turns with arithmetic, do an operation per lane every other cycle; one channel of DDR4-2666.
_CPU_RATES = (1.5e11, 1.5e11, 1.5e11, 7.5e10), 2e10, 2e10

DEVICES: dict[str, Device] = {
    device.name: device
    for device in (
        Device("cpu", CPU, *_CPU_RATES, 0, 1e-6, None, "cpu"),
        _gpu("h200", (1979, 989, 495, 67), 67, 4.8, 141, _PCIE5, r"\bH200", 132, 1.98, 50, 9),
        _gpu("h100", (1979, 989, 495, 67), 67, 3.35, 80, _PCIE5, r"\bH100|\bH800", 132, 1.98, 50, 9),
        _gpu("gh200", (1979, 989, 495, 67), 67, 4.0, 96, _NVLINK_C2C, "GH200", 132, 1.98, 60, 9),
        _gpu("a100", (624, 312, 156, 19.5), 19.5, 2.04, 80, _PCIE4, "A100|A800", 108, 1.41, 40, 8),
        _gpu("b200", (4500, 2250, 1125, 37), 75, 8.0, 180, _PCIE5, "B200|GB200", 148, 1.965, 126.5, 10),
        _gpu("l4", (242, 121, 60, 0.49), 30, 0.3, 24, _PCIE4, r"L4\b", 58, 2.04, 48, 8),
        _tpu("tpu-v5e", 394, 197, 6.1, 0.82, 16, 16, "v5 ?lite|v5e"),
        _tpu("tpu-v5p", 918, 459, 14.3, 2.76, 95, 16, r"v5p|v5\b"),
        _tpu("tpu-v6e", 1836, 918, 7.2, 1.64, 32, 32, "v6"),
    )
}
"""Targets by name."""

_FALLBACK = {"cpu": "cpu", "gpu": "h100", "cuda": "h100", "rocm": "h100", "tpu": "tpu-v5e"}


def resolve_target(name: str | None = None) -> Device:
    """The device of a target's name, or of the default backend, at the rates that were measured where they were.

    Args:
      name: one of `DEVICES`, or None.

    Raises:
      ArgumentError: for a name that is not in the table; it names the nearest one that is.
    """
    key = target_of(jax.devices()[0]) if name is None else str(name).lower()
    if key not in DEVICES:
        near = _nearest(key)
        hint = f"did you mean {near!r}? " if near else ""
        raise ArgumentError(
            f"target={name!r} is not known: {hint}Use one of {', '.join(DEVICES)}, or None for this machine"
        )
    backend = CUDA_TRIED if DEVICES[key].backend is CUDA and is_this_machines(key) else DEVICES[key].backend
    return dataclasses.replace(DEVICES[key], backend=backend, **measured_rates(key))


def is_this_machines(name: str) -> bool:
    """Whether a target is the device of the default backend."""
    return target_of(jax.devices()[0]) == name


def target_of(device: jax.Device) -> str:
    """The target that a real device is; for an unknown kind, a common one of its platform stands in."""
    for candidate in DEVICES.values():
        same = candidate.platform == {"gpu": "cuda"}.get(device.platform, device.platform)
        if same and re.search(candidate.kind, device.device_kind, re.IGNORECASE):
            return candidate.name
    return _FALLBACK.get(device.platform, "cpu")


def _nearest(name: str) -> str | None:
    """A target that contains the name or is spelt alike; of a platform, a common one."""
    if name in _FALLBACK:
        return _FALLBACK[name]
    plain = re.sub(r"[^a-z0-9]", "", name)
    inside = [known for known in DEVICES if plain and plain in re.sub(r"[^a-z0-9]", "", known)]
    return next(iter([*inside, *difflib.get_close_matches(name, DEVICES, 1)]), None)
