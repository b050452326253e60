"""A plan's text in a terminal: coloured through `rich` where it is installed, plain otherwise and in logs."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable
from typing import Any, TextIO

_STYLES = (
    (re.compile(r"^save\b"), "blue"),
    (re.compile(r"^recompute\b"), "yellow"),
    (re.compile(r"^defer\b"), "cyan"),
    (re.compile(r"^(?:budget|predicted|compiled|extra time|solved in|at the peak:|live bytes)"), "bold"),
    (re.compile(r"^warning:"), "bold red"),
    (re.compile(r"[▁▂▃▄▅▆▇█]+"), "blue"),
)


def has_rich() -> bool:
    """Whether `rich` is installed."""
    return importlib.util.find_spec("rich") is not None


def write(text: str, stream: TextIO) -> None:
    """Writes the text of a plan to a stream, in colours where someone watches it."""
    if has_rich() and stream.isatty():
        from rich.console import Console

        Console(file=stream).print(to_rich(text), soft_wrap=True)
    else:
        stream.write(text + "\n")


def to_rich(text: str) -> Any:
    """The text of a plan with colours, as a `rich.text.Text`."""
    from rich.text import Text

    return Text("\n").join(_coloured(Text(line)) for line in text.split("\n"))


def _coloured(line: Any) -> Any:
    for start, end, style in _found(line.plain):
        line.stylize(style, start, end)
    return line


def _found(text: str) -> Iterable[tuple[int, int, str]]:
    for pattern, style in _STYLES:
        if match := pattern.search(text):
            yield match.start(), match.end(), style
