"""Progress on long work: a line that redraws itself in a terminal or a notebook, and nothing in logs."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

from jaxremat.show.display import notebook_shell

_WIDTH = 28


def track[T](items: Sequence[T], what: str) -> Iterator[T]:
    """Yields the items and draws how far they are, where someone watches standard error."""
    watched = sys.stderr is not None and (sys.stderr.isatty() or notebook_shell() is not None)
    for done, item in enumerate(items):
        if watched:
            _draw(done, len(items), what)
        yield item
    if watched:
        sys.stderr.write("\r" + " " * (_WIDTH + len(what) + 20) + "\r")
        sys.stderr.flush()


def _draw(done: int, total: int, what: str) -> None:
    filled = round(_WIDTH * done / max(total, 1))
    sys.stderr.write(f"\r{what} [{'█' * filled}{'·' * (_WIDTH - filled)}] {done}/{total}")
    sys.stderr.flush()
