"""Hooks of the documentation's build."""

import importlib
import re
from pathlib import Path
from typing import Any

import nbconvert
import nbformat
from nbconvert.preprocessors import ExecutePreprocessor

_BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
_SHOWN = re.compile(r"<!-- shown: (\w+) -->")
_REFERENCE = re.compile(r"^::: (jaxremat\.[\w.]+)$", re.MULTILINE)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The reference names things by the path that users write; their docstrings are found where they are defined."""
    return _REFERENCE.sub(_expanded, markdown) if page.file.src_uri == "api.md" else markdown


def _expanded(match: re.Match) -> str:
    path = match[1]
    heading = path if path.count(".") <= 2 else path.rsplit(".", 1)[-1]  # a record that nobody imports has its name
    return f"::: {home_of(path)}\n    options:\n      heading: {heading}\n      toc_label: {heading}"


def home_of(path: str) -> str:
    """Where a public name is defined: `jaxremat.planning.entry.plan` for `jaxremat.plan`."""
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


def on_page_content(html: str, page: Any, **_: Any) -> str:
    """What a notebook shows of a variable stands where a page asks for it, once the blocks before it have run."""
    names: dict[str, Any] = {}
    before, *asked = _SHOWN.split(page.markdown)
    for name, after in zip(asked[::2], asked[1::2]):
        for block in _BLOCK.findall(before):
            exec(block, names)
        html = html.replace(f"<!-- shown: {name} -->", names[name]._repr_html_(), 1)
        before = after
    return html


def on_post_build(config: Any, **_: Any) -> None:
    """Executes the notebooks and writes them beside the pages; a cell that fails fails the build."""
    target = Path(config["site_dir"]) / "notebooks"
    target.mkdir(exist_ok=True)
    exporter = nbconvert.HTMLExporter(template_name="lab")
    for source in sorted(Path(config["docs_dir"]).glob("notebooks/*.ipynb")):
        book = nbformat.read(source, as_version=4)
        ExecutePreprocessor(timeout=600).preprocess(book, {"metadata": {"path": str(source.parent)}})
        (target / f"{source.stem}.html").write_text(exporter.from_notebook_node(book)[0], encoding="utf-8")
