"""Numbers that look random, made of others: what is equal gives equal ones."""

from __future__ import annotations

import jax
import numpy as np


def mixed(bits: jax.Array) -> jax.Array:
    """Each number with its bits mixed (Appleby's MurmurHash3, `fmix32`).

    Args:
      bits: uint32.
    """
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        bits = (bits ^ (bits >> np.uint32(shift))) * np.uint32(factor)
    return bits


def scattered(positions: jax.Array) -> jax.Array:
    """Small numbers, far apart: each times 2**32 over the golden ratio (Knuth, The Art of Computer Programming 6.4)."""
    return positions * np.uint32(0x9E3779B9)
