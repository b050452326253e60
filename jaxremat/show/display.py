"""Where a plan is displayed: a file, a notebook, or a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxremat.show.html import page
from jaxremat.show.terminal import write


def show(html: Callable[[], str], text: Callable[[], str], file: str | Path | None = None) -> None:
    """Writes an element as a page to `file`; without one, shows it in the notebook, or the text on standard output."""
    if file is not None:
        Path(file).write_text(page("jaxremat plan", html()), encoding="utf-8")
    elif (shell := notebook_shell()) is not None:
        shell.display_pub.publish({"text/html": html(), "text/plain": text()})
    else:
        write(text(), sys.stdout)


def notebook_shell() -> Any | None:
    """The running notebook kernel's shell; None in a terminal or script."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return shell if shell is not None and hasattr(shell, "kernel") else None
