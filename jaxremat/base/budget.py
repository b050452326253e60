"""Budgets as people write them: bytes, "12GiB", or a fraction of the program's own peak."""

from __future__ import annotations

import numbers
import re

from jaxremat.base.errors import ArgumentError
from jaxremat.base.near_miss import did_you_mean

_UNITS = {"": 1, "B": 1}  # what each stands for: powers of ten, or of two as IEC 80000-13 has them
_UNITS |= {f"{prefix}B": 1000**power for power, prefix in enumerate("KMGT", 1)}
_UNITS |= {f"{prefix}iB": 1024**power for power, prefix in enumerate("KMGT", 1)}
_BY_LOWER = {unit.lower(): factor for unit, factor in _UNITS.items()}
_HELP = (
    'give bytes (12884901888), text with a unit ("12GiB", "800MB"), a fraction of the plain peak in (0, 1] (0.5),'
    ' "least" or "device"'
)
LEAST, DEVICE = "least", "device"

Budget = int | float | str


def parse_budget(budget: Budget) -> int | float | str:
    """A budget as an int (bytes, at least 1), a float (fraction of the plain peak, in (0, 1]), "least" or "device".

    Raises:
      ArgumentError: if it is neither.
    """
    if isinstance(budget, bool):
        raise ArgumentError(f"budget={budget!r} is no size: {_HELP}")
    if budget in (LEAST, DEVICE):
        return str(budget)
    if isinstance(budget, str):
        return _positive(_parse_text(budget), budget)
    if isinstance(budget, numbers.Integral):
        return _positive(int(budget), budget)
    if isinstance(budget, numbers.Real):
        if not 0 < budget <= 1:
            raise ArgumentError(f"budget={budget!r} is not a fraction in (0, 1]: {_HELP}")
        return float(budget)
    raise ArgumentError(f"budget={budget!r} cannot be read: {_HELP}")


def budget_bytes(budget: Budget, plain_peak_bytes: int, device_bytes: int) -> int:
    """A budget other than "least" in bytes, rounded down.

    Args:
      budget: what was asked for.
      plain_peak_bytes: what a fraction is taken of.
      device_bytes: what "device" stands for.
    """
    parsed = device_bytes if budget == DEVICE else parse_budget(budget)
    return max(1, int(parsed * plain_peak_bytes)) if isinstance(parsed, float) else int(parsed)


def keep_bytes(keep: Budget, read_bytes: int) -> int:
    """What a block may leave behind, in bytes, rounded down.

    Args:
      keep: bytes, text, or a fraction in [0, 1].
      read_bytes: what a fraction is taken of.

    Raises:
      ArgumentError: if it is none of these.
    """
    if isinstance(keep, str) and keep not in (LEAST, DEVICE):
        return _parse_text(keep, "keep")
    if isinstance(keep, numbers.Integral) and not isinstance(keep, bool) and keep >= 0:
        return int(keep)
    if isinstance(keep, numbers.Real) and not isinstance(keep, numbers.Integral) and 0 <= keep <= 1:
        return int(keep * read_bytes)
    raise ArgumentError(
        f'keep={keep!r} cannot be read: give bytes that a block may leave behind (0, 1000000, "1GiB"), or a fraction in'
        " [0, 1] of what its backward reads (0.4)"
    )


def format_bytes(number: float) -> str:
    """`1.5 GiB`, `820.0 MiB`, `17 B`."""
    for unit, factor in (("TiB", 1024**4), ("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024)):
        if abs(number) >= factor:
            return f"{number / factor:.1f} {unit}"
    return f"{int(number)} B"


def _parse_text(text: str, option: str = "budget") -> int:
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*([A-Za-z]*)\s*", text)
    factor = _BY_LOWER.get(match[2].lower()) if match else None
    if match and not match[2] and float(match[1]) <= 1:
        raise ArgumentError(
            f"{option}={text!r} is text without a unit, and less than two bytes: {float(match[1])} without quotes is a"
            " fraction"
        )
    if match is None or factor is None:
        raise ArgumentError(f"{option}={text!r} cannot be read: {_HELP}.{_near_miss(text)}")
    return int(float(match[1]) * factor)


def _near_miss(text: str) -> str:
    percent = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*%\s*", text)
    return f" {float(percent[1]) / 100:g} is that share." if percent else did_you_mean(text, (LEAST, DEVICE))


def _positive(number: int, budget: Budget) -> int:
    if number < 1:
        raise ArgumentError(f"budget={budget!r} leaves no byte: {_HELP}")
    return number
