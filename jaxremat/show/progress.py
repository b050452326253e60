"""Progress on long work, where someone watches: a bar in a terminal, a line in a notebook; nothing in logs."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from jaxremat.base.telling import listening
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


class StatusLine:
    """A line about long work, from two seconds on: what is told inside. It is gone in the end, however that comes.

    Args:
      what: the work.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self._begin = time.monotonic()
        self._redraw: Callable[[str], None] | None = None
        self._listening = listening(self.tell)

    def __enter__(self) -> StatusLine:
        self._begin = time.monotonic()
        self._listening.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._listening.__exit__(*error)
        if self._redraw:
            self._redraw("")

    def tell(self, text: str) -> None:
        """Shows how far the work is, where someone has been waiting."""
        if time.monotonic() - self._begin >= _PATIENCE_SECONDS:
            self._redraw = self._redraw or _line()
            self._redraw(f"{self.what}: {text}")


def _line() -> Callable[[str], None]:
    """What draws a line anew where someone watches: in a cell's output, in a terminal."""
    if notebook_shell() is not None:
        return _line_of_a_cell()
    if sys.stderr is not None and sys.stderr.isatty():
        return _line_of_a_terminal()
    return lambda text: None


def _line_of_a_cell() -> Callable[[str], None]:
    from IPython.display import display

    shown: Any = display(_Line(), display_id=True)
    return lambda text: shown.update(_Line(text))


def _line_of_a_terminal() -> Callable[[str], None]:
    width = 0

    def redraw(text: str) -> None:
        nonlocal width
        sys.stderr.write("\r" + text.ljust(width) + ("" if text else "\r"))
        sys.stderr.flush()
        width = len(text)

    return redraw


def _in_notebook[T](items: Sequence[T], what: str) -> Iterator[T]:
    """A line of the cell's output that is redrawn, and empty in the end."""
    redraw = _line_of_a_cell()
    for done, item in enumerate(items):
        redraw(_bar(done, len(items), what))
        yield item
    redraw("")


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
    redraw = _line_of_a_terminal()
    for done, item in enumerate(items):
        redraw(_bar(done, len(items), what))
        yield item
    redraw("")


def _bar(done: int, total: int, what: str) -> str:
    filled = round(_WIDTH * done / max(total, 1))
    return f"{what} [{'█' * filled}{'·' * (_WIDTH - filled)}] {done}/{total}"
