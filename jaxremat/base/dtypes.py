"""Dtypes that hold others, whatever promotion the user's configuration allows."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp


def promoted(*dtypes: Any) -> jnp.dtype:
    """The dtype to which `jax.numpy` promotes all of these where it may: `jax_numpy_dtype_promotion="standard"`."""
    with jax.numpy_dtype_promotion("standard"):
        return functools.reduce(jnp.promote_types, dtypes)
