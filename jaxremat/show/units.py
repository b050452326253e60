"""Numbers as people read them."""

from __future__ import annotations

from collections.abc import Sequence

from jaxremat.base.budget import format_bytes

_UNITS = (("TiB", 1024**4), ("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024), ("B", 1))


def format_seconds(seconds: float) -> str:
    """`1.2 s`, `35.1 ms`, `7 µs`."""
    if seconds >= 1:
        return f"{seconds:.1f} s"
    return f"{seconds * 1e3:.1f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.0f} µs"


def format_sum(parts: Sequence[tuple[str, int]]) -> str:
    """`parameters 12.1 + optimizer 24.2 + saved 30.4 = 66.7 GiB`: in the unit of the sum; what rounds to nothing is
    left out."""
    total = sum(size for _, size in parts)
    unit, factor = next((unit, factor) for unit, factor in _UNITS if total >= factor or factor == 1)
    digits = 0 if unit == "B" else 1
    told = [f"{what} {size / factor:.{digits}f}" for what, size in parts if round(size / factor, digits)]
    return f"{' + '.join(told)} = {total / factor:.{digits}f} {unit}"


def count_of(number: int, noun: str) -> str:
    """`1 value`, `12 values`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


__all__ = ["count_of", "format_bytes", "format_seconds", "format_sum"]
