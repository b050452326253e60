"""Hooks of the documentation's build."""

import importlib
import re
from typing import Any

_REFERENCE = re.compile(r"^::: (jaxremat\.[\w.]+)$", re.MULTILINE)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The reference names things by the path that users write; their docstrings are found where they are defined."""
    return _REFERENCE.sub(_expanded, markdown) if page.file.src_uri == "api.md" else markdown


def _expanded(match: re.Match) -> str:
    path = match[1]
    return f"::: {home_of(path)}\n    options:\n      heading: {path}\n      toc_label: {path}"


def home_of(path: str) -> str:
    """Where a public name is defined: `jaxremat.planning.planning.plan` for `jaxremat.plan`."""
    parts = path.split(".")
    for split in range(len(parts) - 1, 0, -1):
        try:
            thing = importlib.import_module(".".join(parts[:split]))
        except ImportError:
            continue
        for name in parts[split:]:
            thing = getattr(thing, name)
        return f"{thing.__module__}.{thing.__qualname__}" if hasattr(thing, "__qualname__") else path
    raise ImportError(f"{path} is not importable")
