"""Compile a gradient program and read its memory."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, NamedSharding, SingleDeviceSharding

from jaxremat.backends.devices import Device, resolve_target
from jaxremat.base.budget import format_bytes
from jaxremat.base.errors import TargetError
from jaxremat.compiled.roofline import roofline
from jaxremat.compiled.targets import compiler_lock, is_here, target_devices
from jaxremat.trace.arguments import Opaque

_WITHOUT_DEVICE: dict[str, dict[str, Any]] = {"cuda": {"xla_gpu_autotune_level": 0}}
"""Options of compilers for devices that are not here: kernels cannot be tried out."""


@dataclasses.dataclass(frozen=True)
class MemoryReport:
    """Bytes of a compiled program on one device, as the compiler reports them.

    Attributes:
      target: name of the device.
      argument_bytes, output_bytes, temp_bytes, alias_bytes: `alias_bytes` are outputs that reuse donated arguments.
      peak_bytes: argument + output + temp − alias: what must be allocated to run it.
      compile_seconds: wall time of tracing, lowering and compiling.
      host_bytes: of the host's memory: argument + output + temp − alias.
      seconds: of one run, by the roofline of the optimized program; None on a CPU, where libraries hide their work.
      flops: of the contractions of one run, counted in the optimized program; None on a CPU.
      xla_rematerialized: operations that XLA's own rematerialization pass made a second time: a program that trips the
        pass is slower than one that stays below its limit.
    """

    target: str
    argument_bytes: int
    output_bytes: int
    temp_bytes: int
    alias_bytes: int
    peak_bytes: int
    compile_seconds: float
    host_bytes: int = 0
    seconds: float | None = None
    flops: float | None = None
    xla_rematerialized: int = 0

    @property
    def held_bytes(self) -> int:
        """argument + output − alias: what is held throughout, whatever runs in between."""
        return self.argument_bytes + self.output_bytes - self.alias_bytes

    def __str__(self) -> str:
        parts = f"arguments {format_bytes(self.argument_bytes)}, outputs {format_bytes(self.output_bytes)}"
        alias = f", aliased −{format_bytes(self.alias_bytes)}" if self.alias_bytes else ""
        return (
            f"{self.target}: peak {format_bytes(self.peak_bytes)} "
            f"({parts}, temporaries {format_bytes(self.temp_bytes)}{alias}); compiled in {self.compile_seconds:.1f} s"
            + (f"; XLA itself recomputes {self.xla_rematerialized} operations" if self.xla_rematerialized else "")
        )


@dataclasses.dataclass(frozen=True, eq=False)
class CompiledGradient:
    """A compiled gradient program: its report, and the optimized program as text."""

    report: MemoryReport
    executable: Any

    def hlo_text(self) -> str:
        """The program after all the compiler's passes."""
        return self.executable.as_text()


def compile_gradient(
    fun: Callable[..., Any],
    args: Sequence[Any],
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    target: str | None = None,
) -> MemoryReport:
    """Compiles the gradient program of a function for a target and reads its memory.

    Args:
      fun: the function; where it returns something else than one scalar, its vjp is compiled with the cotangents as
        further arguments.
      args: arrays or ShapeDtypeStructs, in any tree; shardings are kept.
      argnums, has_aux: as in `jax.value_and_grad`.
      target: a target's name, or None for the default backend.

    Raises:
      TargetError: if this machine cannot compile for the target.
    """
    return compile_for(fun, args, argnums, has_aux, target).report


def compile_jitted(jitted: Any, args: Sequence[Any], kwargs: Mapping[Any, Any], target: str | None) -> CompiledGradient:
    """Compiles what `jax.jit` returned for a target.

    Args:
      jitted: the jitted function.
      args, kwargs: ShapeDtypeStructs (with shardings) in trees, and static values.
      target: a target's name, or None for the default backend.

    Raises:
      TargetError: if this machine cannot compile for the target.
    """
    device = resolve_target(target)
    devices = target_devices(target)
    start = time.perf_counter()
    here = target is None or device.platform == "cpu"
    placed, named = _place((tuple(args), dict(kwargs)), jax.devices() if here else devices, here)
    with compiler_lock(device):
        lowered = jitted.trace(*placed, **named).lower(lowering_platforms=(device.platform,))
        executable = lowered.compile(compiler_options=None if is_here(device) else _WITHOUT_DEVICE.get(device.platform))
    return CompiledGradient(_read(executable, device, time.perf_counter() - start), executable)


def compile_for(
    fun: Callable[..., Any],
    args: Sequence[Any],
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    target: str | None = None,
) -> CompiledGradient:
    """As `compile_gradient`, with the executable at hand."""
    program, inputs = gradient_program(fun, args, argnums, has_aux)
    return compile_jitted(jax.jit(program), inputs, {}, target)


def gradient_program(
    fun: Callable[..., Any], args: Sequence[Any], argnums: int | Sequence[int] = 0, has_aux: bool = False
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The function to compile, and its abstract arguments: `value_and_grad`, or the vjp for other than one scalar."""
    inputs = tuple(jax.tree.map(_abstract, tuple(args)))
    out = jax.eval_shape(fun, *inputs)
    primary = out[0] if has_aux else out
    is_one_array = isinstance(primary, jax.ShapeDtypeStruct)
    if is_one_array and primary.shape == () and jnp.issubdtype(primary.dtype, jnp.floating):
        return jax.value_and_grad(fun, argnums, has_aux), inputs
    positions = (argnums,) if isinstance(argnums, int) else tuple(argnums)

    def vjp_program(cotangents: Any, *args: Any) -> Any:
        def of_planned(*planned: Any) -> Any:
            full = list(args)
            for position, value in zip(positions, planned):
                full[position] = value
            return fun(*full)

        planned = [args[position] for position in positions]
        if has_aux:
            out, back, aux = jax.vjp(of_planned, *planned, has_aux=True)
            return (out, aux), back(cotangents)
        out, back = jax.vjp(of_planned, *planned)
        return out, back(cotangents)

    cotangents = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, _cotangent_dtype(leaf.dtype)), primary)
    return vjp_program, (cotangents, *inputs)


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    aval = jax.typeof(leaf)
    sharding = getattr(leaf, "sharding", None)
    sharding = sharding if isinstance(sharding, NamedSharding) else None
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype, sharding=sharding, weak_type=getattr(aval, "weak_type", False))


def _cotangent_dtype(dtype: Any) -> Any:
    return dtype if jnp.issubdtype(dtype, jnp.inexact) else jax.dtypes.float0


def _place(inputs: tuple[Any, ...], devices: list[Any], here: bool) -> tuple[Any, ...]:
    """The arguments on the target's devices: meshes are rebuilt there, everything else sits on the first one."""

    def place(leaf: Any) -> Any:
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf
        if here and not isinstance(getattr(leaf.sharding, "mesh", None), AbstractMesh):
            return leaf
        kind = getattr(leaf.sharding, "memory_kind", None)
        sharding: Any = SingleDeviceSharding(devices[0], memory_kind=kind)
        if isinstance(leaf.sharding, NamedSharding):
            sharding = NamedSharding(_rebuilt(leaf.sharding.mesh, devices), leaf.sharding.spec, memory_kind=kind)
        return leaf.update(sharding=sharding)

    return jax.tree.map(place, inputs, is_leaf=lambda x: isinstance(x, Opaque))


def _rebuilt(mesh: Any, devices: list[Any]) -> Any:
    if mesh.size > len(devices):
        raise TargetError(
            f"the arguments are sharded over {mesh.size} devices, the target describes {len(devices)}: "
            "shard over fewer, or verify one device's share"
        )
    grid = np.asarray(devices[: mesh.size], dtype=object).reshape(tuple(mesh.shape.values()))
    return jax.sharding.Mesh(grid, mesh.axis_names, axis_types=mesh.axis_types)


def _host_bytes(stats: Any) -> int:
    """Bytes in the host's memory: argument + output + temp − alias, as on the device."""
    argument, output, temp, alias = (
        int(getattr(stats, f"host_{part}_size_in_bytes")) for part in ("argument", "output", "temp", "alias")
    )
    return argument + output + temp - alias


def _read(executable: Any, device: Device, compile_seconds: float) -> MemoryReport:
    stats = executable.memory_analysis()
    argument, output = int(stats.argument_size_in_bytes), int(stats.output_size_in_bytes)
    temp, alias = int(stats.temp_size_in_bytes), int(stats.alias_size_in_bytes)
    peak = argument + output + temp - alias
    report = MemoryReport(device.name, argument, output, temp, alias, peak, compile_seconds, _host_bytes(stats))
    if device.platform == "cpu":  # where the pass does not run
        return report
    text = executable.as_text()
    time = roofline(text, device)
    again = rematerialized(text)
    return dataclasses.replace(report, seconds=time.seconds, flops=time.flops, xla_rematerialized=again)


def rematerialized(hlo_text: str) -> int:
    """How many operations of an optimized program XLA's rematerialization pass made: it names them so
    (`hlo_rematerialization.cc`)."""
    return len(re.findall(r"^\s*(?:ROOT )?%[\w.-]+\.remat[\w.]* = ", hlo_text, re.MULTILINE))
