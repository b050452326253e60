"""How long something takes, parts of it left out."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator


class Stopwatch:
    """Counts wall time while it runs.

    Args:
      seconds: what it has counted before.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        self._counted = seconds
        self._since: float | None = None

    @property
    def seconds(self) -> float:
        """What was counted so far."""
        return self._counted if self._since is None else self._counted + time.perf_counter() - self._since

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Counts what is done inside."""
        with self._set(time.perf_counter()):
            yield

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Counts nothing of what is done inside."""
        with self._set(None):
            yield

    @contextlib.contextmanager
    def _set(self, since: float | None) -> Iterator[None]:
        was_running = self._since is not None
        self._counted, self._since = self.seconds, since
        try:
            yield
        finally:
            self._counted, self._since = self.seconds, time.perf_counter() if was_running else None
