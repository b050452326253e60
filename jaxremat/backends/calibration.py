"""A device as it is measured, in place of its data sheet: a minute of microbenchmarks, kept per user."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxremat.backends.devices import DEVICES, Device, target_of
from jaxremat.backends.measured import RATES, keep_rates

_SECONDS = 0.2  # that a measurement lasts at least, so that clocks and caches settle
_CHAIN = 64  # dependent kernels of one program, for launches
_TOGETHER = 8  # runs started at once, where all of them take less than a measurement may
_ARITHMETIC = 512  # operations of one loop per entry: many times what reading and writing the entry takes
_PASSES, _INNER = 5, 16  # contractions into one buffer, which is new to the first; so narrow that writing counts


def calibrate(device: jax.Device | None = None) -> Device:
    """Measures a device and keeps the result for the plans of this user.

    Args:
      device: a real device; None is the default backend's first.

    Returns:
      The record: rates as measured, memory as the data sheet has it. Later plans for that target use it.
    """
    real = device or jax.devices()[0]
    sheet = DEVICES[target_of(real)]
    with jax.default_device(real):
        measured = dataclasses.replace(
            sheet,
            matrix_flops_per_second=_matrix_rates(sheet),
            vector_flops_per_second=_vector_flops(sheet),
            bandwidth_bytes_per_second=_bandwidth(sheet),
            launch_seconds=_launch_seconds(),
            host_bytes_per_second=None if sheet.host_bytes_per_second is None else _host_bandwidth(real),
            first_touch_seconds_per_byte=0.0 if sheet.backend.reused_bytes is None else _first_touch(sheet),
        )
    keep_rates(measured.name, {name: getattr(measured, name) for name in RATES})
    return measured


def _matrix_rates(sheet: Device) -> tuple[float, float, float, float]:
    rates = [_matrix_flops(dtype, sheet) for dtype in (jnp.int8, jnp.bfloat16, jnp.float32, jnp.float64)]
    return rates[0], rates[1], rates[2], rates[3]


def _matrix_flops(dtype: Any, sheet: Device) -> float:
    """FLOP/s of a square contraction; that of the data sheet where the device does not take the dtype."""
    if dtype == jnp.float64 and not jax.config.read("jax_enable_x64"):
        return sheet.matrix_flops(np.float64)
    size = 512 if sheet.platform == "cpu" else 8192
    x = _random((size, size), dtype)
    out = jnp.int32 if dtype == jnp.int8 else dtype
    return 2 * size**3 / _seconds(jax.jit(lambda x: jax.lax.dot(x, x, preferred_element_type=out)), x)


def _random(shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Numbers of all kinds: on equal ones a GPU switches less, and runs faster than it will."""
    if jnp.issubdtype(dtype, jnp.integer):
        return jax.random.randint(jax.random.key(0), shape, -128, 128, dtype)
    return jax.random.normal(jax.random.key(0), shape, dtype)


def _vector_flops(sheet: Device) -> float:
    """FLOP/s of a chain of multiplications and additions in one loop."""

    def chain(x: Any) -> Any:
        for _ in range(_ARITHMETIC // 2):
            x = x * x + x
        return x

    size = 2**18 if sheet.platform == "cpu" else 2**26
    return _ARITHMETIC * size / _seconds(jax.jit(chain), jnp.full(size, 1e-3, jnp.float32))


def _bandwidth(sheet: Device) -> float:
    """Bytes per second of loops that read and write an array much larger than caches, one after the other."""
    size = 2**24 if sheet.platform == "cpu" else 2**28
    return _CHAIN * 2 * 4 * size / _seconds(jax.jit(_apart), jnp.zeros(size, jnp.float32))


def _launch_seconds() -> float:
    """Seconds per kernel of a program of tiny ones."""
    return _seconds(jax.jit(_apart), jnp.ones(8, jnp.float32)) / _CHAIN


def _apart(x: Any) -> Any:
    """A chain of element-wise kernels, kept apart by barriers."""
    for _ in range(_CHAIN):
        x = jax.lax.optimization_barrier(x + 1)
    return x


def _host_bandwidth(device: jax.Device) -> float:
    """Bytes per second over the slower way between a device and its host's memory, as programs copy over it."""
    away = jax.jit(lambda x: jax.device_put(x, jax.memory.Space.Host))
    back = jax.jit(lambda x: jax.device_put(x, jax.memory.Space.Device))
    array = jax.device_put(np.zeros(2**26, np.float32), device)
    return array.nbytes / max(_seconds(away, array), _seconds(back, away(array)))


def _first_touch(sheet: Device) -> float:
    """Seconds per byte that a contraction whose result is new memory takes more than the next ones, which write into
    the same: most of what a step holds is written by kernels that run on all cores."""
    assert sheet.backend.reused_bytes is not None  # else nothing is new
    rows = math.isqrt(sheet.backend.reused_bytes // 2)  # of float32: twice as many bytes

    def seconds(number: int) -> float:
        return _seconds(jax.jit(lambda x: _one_after_another(x, number)), jnp.ones((rows, _INNER), jnp.float32))

    once = seconds(1)
    again = (seconds(_PASSES) - once) / (_PASSES - 1)
    return max(once - again, 0.0) / (4 * rows**2)


def _one_after_another(x: Any, number: int) -> Any:
    """Large contractions, each summed before the next one begins."""
    total = jnp.zeros((), jnp.float32)
    for _ in range(number):
        total += jax.lax.optimization_barrier(x @ x.T).sum()
        x, total = jax.lax.optimization_barrier((x, total))
    return total


def _seconds(run: Callable[..., Any], argument: Any) -> float:
    """The fastest of several measurements of one run, after one that compiles. Runs are started together, so many that
    what starting one takes is hidden behind the one before."""
    jax.block_until_ready(run(argument))
    best, spent, together = math.inf, 0.0, 1
    while spent < _SECONDS or not math.isfinite(best):
        start = time.perf_counter()
        jax.block_until_ready([run(argument) for _ in range(together)])
        passed = time.perf_counter() - start
        best, spent = min(best, passed / together), spent + passed
        together = _TOGETHER if passed < _SECONDS / _TOGETHER else 1
    return best
