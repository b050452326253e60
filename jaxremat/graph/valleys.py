"""Where a curve of bytes rises and falls: its hills (Liu, SIAM J. Algebraic Discrete Methods 8(3), 1987, of trees), and
the valleys between them."""

from __future__ import annotations

import numpy as np


def hills(live_bytes: np.ndarray) -> list[tuple[int, int]]:
    """Ranges [first, end) that cover all steps, each around one hill.

    Two hills are told apart where memory falls to half of the lower of them, as two lines of a spectrum are; what
    never reaches half of the highest is not one, and a slope that goes up and down around that half is not several.

    Args:
      live_bytes: [T] at each step, without what is live throughout.
    """
    least_bytes = live_bytes.max(initial=0) / 2
    ranges, found = [(0, live_bytes.size)], []
    while ranges:
        first, end = ranges.pop()
        valley = _deepest_valley(live_bytes[first:end], least_bytes)
        if valley is None:
            found.append((first, end))
        else:
            ranges += [(first + valley + 1, end), (first, first + valley + 1)]
    return found


def _deepest_valley(live_bytes: np.ndarray, least_bytes: float) -> int | None:
    """The lowest step between two hills that are told apart there; None where there is one hill."""
    before = np.maximum.accumulate(live_bytes)
    after = np.maximum.accumulate(live_bytes[::-1])[::-1]
    lower = np.minimum(before, after)
    valley = np.flatnonzero((live_bytes <= lower / 2) & (live_bytes < lower) & (lower >= least_bytes))
    return int(valley[live_bytes[valley].argmin()]) if valley.size else None
