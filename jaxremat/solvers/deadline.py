"""A limit on wall time that can be handed down."""

from __future__ import annotations

import math
import time


class Deadline:
    """Counts down from a number of seconds, or from None: never.

    Args:
      limit_seconds: seconds from now, or None.
    """

    def __init__(self, limit_seconds: float | None) -> None:
        self.limit_seconds = limit_seconds
        self._start = time.perf_counter()

    @property
    def elapsed_seconds(self) -> float:
        return time.perf_counter() - self._start

    @property
    def left_seconds(self) -> float:
        """What is left; infinite without a limit."""
        return math.inf if self.limit_seconds is None else max(self.limit_seconds - self.elapsed_seconds, 0.0)

    def passed(self, reserve_seconds: float = 0.0) -> bool:
        """Whether less than `reserve_seconds` are left."""
        return self.limit_seconds is not None and self.elapsed_seconds + reserve_seconds >= self.limit_seconds

    def remaining_seconds(self, least_share: float = 0.1) -> float | None:
        """What is left, but never less than a share of the whole; None without a limit."""
        if self.limit_seconds is None:
            return None
        return max(self.limit_seconds - self.elapsed_seconds, least_share * self.limit_seconds)
