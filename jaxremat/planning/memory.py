"""Plans that were made in this process, so that equal programs share one, whoever asks."""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable, Hashable
from typing import Any


class Memory[T]:
    """Remembers what was made for a key, the most recently used ones; who asks for the same key waits for it.

    Args:
      most: how many are remembered.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._lock = threading.Lock()
        self._made: collections.OrderedDict[Hashable, T] = collections.OrderedDict()
        self._making: dict[Hashable, threading.Lock] = {}

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """What was made for a key, or what `make` makes now. What it raises is not remembered."""
        with self._lock:
            turn = self._making.setdefault(key, threading.Lock())
        with turn:
            if (found := self.known(key)) is not None:
                return found
            self.remember(key, made := make())
            return made

    def known(self, key: Hashable) -> T | None:
        """What is remembered for a key."""
        with self._lock:
            if key in self._made:
                self._made.move_to_end(key)
            return self._made.get(key)

    def remember(self, key: Hashable, made: T) -> None:
        """Keeps what was made for a key, in place of the least recently used where there are too many."""
        with self._lock:
            self._made[key] = made
            self._making.pop(key, None)
            if len(self._made) > self.most:
                self._made.popitem(last=False)

    def clear(self) -> None:
        """Forgets everything."""
        with self._lock:
            self._made.clear()


PLANS: Memory[Any] = Memory(512)
"""What was decided, by the decorators and by `plan`, for a program, options and a target: data, which keeps no program
alive; the most recently used, as compiled functions are kept by `jax.jit`."""
