"""Measured rates of devices, in a small file per user: `jaxremat/devices.json` in `$XDG_CACHE_HOME`, or in `~/.cache`.

The device table prefers them. What cannot be read is passed over, with a line in the log: the data sheet then counts.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

logger = logging.getLogger("jaxremat")

RATES = (
    "matrix_flops_per_second",
    "vector_flops_per_second",
    "bandwidth_bytes_per_second",
    "launch_seconds",
    "host_bytes_per_second",
    "first_touch_seconds_per_byte",
)
"""Fields of a device that are measured; the first holds four numbers, the last may be zero."""


def rates_file() -> Path:
    """Where measured rates are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxremat" / "devices.json"


def measured_rates(name: str) -> dict[str, Any]:
    """The measured fields of a target; those that are missing, or make no sense, are left out."""
    found = _read().get(name)
    if not isinstance(found, dict):
        return {}
    numbers = {rate: found[rate] for rate in RATES[1:] if _is_rate(found.get(rate))}
    numbers |= {rate: 0.0 for rate in RATES[-1:] if found.get(rate) == 0}
    matrix = found.get(RATES[0])
    if isinstance(matrix, list) and len(matrix) == 4 and all(map(_is_rate, matrix)):
        numbers[RATES[0]] = tuple(matrix)
    return numbers


def keep_rates(name: str, rates: Mapping[str, Any]) -> None:
    """Adds a target's rates to the file, whole or not at all."""
    path = rates_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(f".{os.getpid()}")
    fresh.write_text(json.dumps(_read() | {name: dict(rates)}, indent=1))
    fresh.replace(path)


def _read() -> dict[str, Any]:
    path = rates_file()
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        logger.warning("%s cannot be read, so data sheets count: %s", path, error)
        return {}
    return found if isinstance(found, dict) else {}


def _is_rate(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and value > 0
