"""Garbage collection while much is made that stays.

Python looks through every object of the process whenever a quarter more of them have come. Beside JAX that is a million
objects, and planning makes as many, which it keeps until it is done: `benchmarks/speed.py` takes a quarter less time
where these looks are rarer.
"""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Iterator

_RARER = 100  # times: a million objects between two looks at everything, some hundred megabytes at most

_lock = threading.Lock()
_usual: list[tuple[int, int, int]] = []  # what to go back to, one entry per planning under way


@contextlib.contextmanager
def collected_seldom() -> Iterator[None]:
    """Collections are rarer inside, in whatever threads; afterwards they are as they were before the first came in."""
    with _lock:
        now = gc.get_threshold()
        _usual.append(_usual[0] if _usual else now)
        gc.set_threshold(_usual[0][0] * _RARER, *_usual[0][1:])
    try:
        yield
    finally:
        with _lock:
            usual = _usual.pop()
            if not _usual:
                gc.set_threshold(*usual)
