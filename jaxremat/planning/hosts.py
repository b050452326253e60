"""One plan for all processes: process 0 makes it, the others receive its bytes."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxremat.base.errors import JaxrematError

_FAILED = np.int32(-1)  # a length that no plan has


def agree(make: Callable[[], bytes]) -> bytes:
    """The bytes that `make` returns on process 0, on every process of `jax.distributed`.

    All processes must call this, in the same order. With a single process it is `make()`.

    Raises:
      JaxrematError: on the other processes, if `make` raises on process 0 (where its own error is raised).
    """
    if jax.process_count() == 1:
        return make()
    made = _announced(make) if jax.process_index() == 0 else _awaited()
    return np.asarray(multihost_utils.broadcast_one_to_all(made), np.uint8).tobytes()


def _announced(make: Callable[[], bytes]) -> np.ndarray:
    """Makes the bytes and tells the others how many there are, or that there are none."""
    length = _FAILED
    try:
        made = np.frombuffer(make(), np.uint8)
        length = np.int32(made.size)
    finally:
        multihost_utils.broadcast_one_to_all(length)
    return made


def _awaited() -> np.ndarray:
    """As many zeros as there are bytes to come."""
    length = int(multihost_utils.broadcast_one_to_all(_FAILED))
    if length < 0:
        raise JaxrematError("process 0 found no plan; its log holds the error. Every process stops here with it.")
    return np.zeros(length, np.uint8)
