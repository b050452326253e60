"""Where a report goes: a file, a notebook, or a terminal."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from jaxremat.report.report import Report
from jaxremat.show.html import page, to_html
from jaxremat.show.terminal import write
from jaxremat.show.text import to_text


def show(report: Report, file: str | Path | None = None) -> None:
    """Writes a report as a page to `file`; without one, displays it in the notebook or on standard output."""
    if file is not None:
        Path(file).write_text(page("jaxremat plan", to_html(report)), encoding="utf-8")
    elif (shell := notebook_shell()) is not None:
        shell.display_pub.publish({"text/html": to_html(report), "text/plain": to_text(report)})
    else:
        write(report, sys.stdout)


def notebook_shell() -> Any | None:
    """The running notebook kernel's shell; None in a terminal or script."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return shell if shell is not None and hasattr(shell, "kernel") else None
