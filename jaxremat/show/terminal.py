"""A report in a terminal: coloured through `rich` where it is installed, plain text otherwise and in logs."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable
from typing import Any, TextIO

from jaxremat.report.report import Report
from jaxremat.show.text import to_text

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


def write(report: Report, stream: TextIO) -> None:
    """Writes a report to a stream, in colours where someone watches it."""
    if has_rich() and stream.isatty():
        from rich.console import Console

        console = Console(file=stream)
        console.print(to_rich(report, console.width), soft_wrap=True)
    else:
        stream.write(to_text(report) + "\n")


def to_rich(report: Report, width: int) -> Any:
    """The text of a report with colours, as a `rich.text.Text`."""
    from rich.text import Text

    lines = [_coloured(Text(line)) for line in to_text(report, width).split("\n")]
    return Text("\n").join(lines)


def _coloured(line: Any) -> Any:
    for start, end, style in _found(line.plain):
        line.stylize(style, start, end)
    return line


def _found(text: str) -> Iterable[tuple[int, int, str]]:
    for pattern, style in _STYLES:
        if match := pattern.search(text):
            yield match.start(), match.end(), style
