"""Progress on long work, where someone watches: a bar in a terminal, a line in a notebook; nothing in logs."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from jaxremat.show.display import notebook_shell
from jaxremat.show.terminal import has_rich

_WIDTH = 28  # columns: a bar, its name and its numbers fit in 80
_PATIENCE_SECONDS = 2.0  # what is done by then needs no line


def track[T](items: Sequence[T], what: str) -> Iterator[T]:
    """Yields the items and shows how far they are."""
    if notebook_shell() is not None:
        return _in_notebook(items, what)
    if sys.stderr is not None and sys.stderr.isatty():
        return _with_rich(items, what) if has_rich() else _in_terminal(items, what)
    return iter(items)


class Status:
    """A line about long work in a terminal, from two seconds on; it is gone in the end, however the work ends.

    Args:
      what: the work.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self._begin = time.monotonic()
        self._width = 0

    def __enter__(self) -> Status:
        self._begin = time.monotonic()
        return self

    def __exit__(self, *error: Any) -> None:
        self._write("")

    def tell(self, text: str) -> None:
        """Shows how far the work is, where someone has been waiting."""
        if time.monotonic() - self._begin >= _PATIENCE_SECONDS and sys.stderr is not None and sys.stderr.isatty():
            self._write(f"{self.what}: {text}")

    def _write(self, line: str) -> None:
        if line or self._width:
            sys.stderr.write("\r" + line.ljust(self._width) + ("" if line else "\r"))
            sys.stderr.flush()
            self._width = len(line)


def _in_notebook[T](items: Sequence[T], what: str) -> Iterator[T]:
    """A line of the cell's output that is redrawn, and empty in the end."""
    from IPython.display import display

    line: Any = display(_Line(), display_id=True)
    for done, item in enumerate(items):
        line.update(_Line(_bar(done, len(items), what)))
        yield item
    line.update(_Line())


class _Line:
    """Text for a notebook."""

    def __init__(self, text: str = "") -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        return f"<code>{self.text}</code>" if self.text else "<span></span>"


def _with_rich[T](items: Sequence[T], what: str) -> Iterator[T]:
    from rich.console import Console
    from rich.progress import track as rich_track

    yield from rich_track(items, description=what, console=Console(file=sys.stderr), transient=True)


def _in_terminal[T](items: Sequence[T], what: str) -> Iterator[T]:
    for done, item in enumerate(items):
        sys.stderr.write("\r" + _bar(done, len(items), what))
        sys.stderr.flush()
        yield item
    sys.stderr.write("\r" + " " * (_WIDTH + len(what) + 20) + "\r")
    sys.stderr.flush()


def _bar(done: int, total: int, what: str) -> str:
    filled = round(_WIDTH * done / max(total, 1))
    return f"{what} [{'█' * filled}{'·' * (_WIDTH - filled)}] {done}/{total}"
