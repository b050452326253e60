"""NVIDIA devices as XLA's `GpuTargetConfigProto`, from which it compiles without a GPU."""

from __future__ import annotations

import dataclasses

from jaxremat.backends.devices import DEVICES


@dataclasses.dataclass(frozen=True)
class GpuShape:
    """What differs between GPUs; the limits shared by all are in the template."""

    description: str
    capability: tuple[int, int]
    shared_memory_per_core: int
    threads_per_core_limit: int
    fpus_per_core: int
    memory_bandwidth: int
    device_memory_size: int


GPU_SHAPES = {
    "h200": GpuShape("NVIDIA H200", (9, 0), 233472, 2048, 128, 4_800_000_000_000, 150_000_000_000),
    "h100": GpuShape("NVIDIA H100", (9, 0), 233472, 2048, 128, 3_350_000_000_000, 85_000_000_000),
    "gh200": GpuShape("NVIDIA GH200 480GB", (9, 0), 233472, 2048, 128, 4_022_000_000_000, 102_000_000_000),
    "a100": GpuShape("NVIDIA A100", (8, 0), 167936, 2048, 64, 2_039_000_000_000, 85_000_000_000),
    "b200": GpuShape("NVIDIA B200", (10, 0), 233472, 2048, 128, 8_000_000_000_000, 191_000_000_000),
    "l4": GpuShape("NVIDIA L4", (8, 9), 102400, 1536, 128, 300_000_000_000, 23_600_000_000),
}


def target_config(name: str) -> str:
    """The text proto of a GPU by target name."""
    shape, device = GPU_SHAPES[name], DEVICES[name]
    major, minor = shape.capability
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {shape.shared_memory_per_core}
  threads_per_core_limit: {shape.threads_per_core_limit}
  core_count: {device.cores}
  fpus_per_core: {shape.fpus_per_core}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {shape.memory_bandwidth}
  l2_cache_size: {device.cache_bytes}
  clock_rate_ghz: {device.clock_ghz}
  device_memory_size: {shape.device_memory_size}
  shared_memory_per_block_optin: {shape.shared_memory_per_core - 1024}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: 12 minor: 9 patch: 0 }}
device_description_str: "{shape.description}"
"""
