"""What scripts that run programs share: the bytes one takes, arguments for it, one cache of what is compiled."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def peak_bytes(executable: Any) -> int:
    """argument + output + temp - alias bytes of a compiled program."""
    memory = executable.memory_analysis()
    used = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    return used - memory.alias_size_in_bytes


def values(shape: jax.ShapeDtypeStruct) -> jax.Array:
    """Small numbers; of integers, such as every vocabulary and every set of classes of the models has."""
    if jnp.issubdtype(shape.dtype, jnp.integer):
        return jax.random.randint(jax.random.key(0), shape.shape, 0, 100, shape.dtype)
    return 0.02 * jax.random.normal(jax.random.key(0), shape.shape, shape.dtype)


def compiled_once(folder: str) -> dict[str, str]:
    """The environment of processes that find in a folder what others of them have compiled."""
    return {
        "JAX_COMPILATION_CACHE_DIR": folder,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
