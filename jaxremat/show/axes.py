"""Scales and round ticks for bytes, seconds and fractions."""

from __future__ import annotations

import dataclasses
import math

from jaxremat.base.budget import format_bytes


@dataclasses.dataclass(frozen=True)
class Scale:
    """A linear map from numbers to pixels."""

    low: float
    high: float
    first_pixel: float
    last_pixel: float

    def __call__(self, number: float) -> float:
        span = (self.high - self.low) or 1.0
        return self.first_pixel + (number - self.low) / span * (self.last_pixel - self.first_pixel)


def byte_ticks(most_bytes: float) -> list[tuple[float, str]]:
    """Three to six round numbers of bytes from zero up, in binary units."""
    unit = 1024 ** int(math.log(max(most_bytes, 1), 1024))
    step = _round_step(most_bytes / unit / 4) * unit
    return [(n * step, format_bytes(n * step).replace(".0 ", " ")) for n in range(int(most_bytes / step) + 1)]


def second_ticks(most_seconds: float) -> list[tuple[float, str]]:
    """Round times from zero up."""
    factor, unit = (1.0, "s") if most_seconds >= 2 else (1e3, "ms") if most_seconds >= 2e-3 else (1e6, "µs")
    step = _round_step(most_seconds * factor / 4)
    return [(n * step / factor, f"{n * step:g} {unit}") for n in range(int(most_seconds * factor / step) + 1)]


def percent_ticks(most: float, least: float = 0.0) -> list[tuple[float, str]]:
    """Round fractions up to the most, from zero or, where that is below, from the least; as percentages."""
    step = _round_step(100 * (most - least) / 4)
    first = -int(-100 * least / step)
    return [(n * step / 100, f"{n * step:g} %") for n in range(first, int(100 * most / step) + 1)]


def _round_step(rough: float) -> float:
    """1, 2, 2.5 or 5 times a power of ten, not below `rough`."""
    power = 10.0 ** math.floor(math.log10(max(rough, 1e-12)))
    return next((factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * (1 - 1e-9)), 10 * power)
