"""The documentation does what it says: pages run on their own, public names are described, links lead somewhere."""

import ast
import dataclasses
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import jaxremat

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
API = (ROOT / "docs/api.md").read_text()


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a language on a page, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.M | re.S)


WITH_PYTHON = [page for page in PAGES if blocks(page, "python")]


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_PYTHON, ids=lambda page: page.stem)
def test_the_blocks_of_a_page_run_as_one_script(page, tmp_path):
    script = tmp_path / "page.py"
    script.write_text("\n".join(blocks(page, "python")))
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=600, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("page", WITH_PYTHON, ids=lambda page: page.stem)
def test_blocks_are_python(page):
    for block in blocks(page, "python"):
        ast.parse(block)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_to_files_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text()):
        if not re.match(r"https?:", target):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def exported() -> list[str]:
    """Every public name of the package, and of its public modules, by the path that users write."""
    names = [f"jaxremat.{name}" for name in dir(jaxremat) if _is_public(jaxremat, name)]
    for room in ("solvers", "attention", "chunk", "compact"):
        module = getattr(jaxremat, room)
        names += [f"jaxremat.{room}.{name}" for name in vars(module) if _is_public(module, name)]
    return sorted(names)


def _is_public(module, name: str) -> bool:
    """Whether a name is re-exported as itself (`from x import y as y`), or listed."""
    if name.startswith("_") or inspect.ismodule(getattr(module, name)):
        return False
    if module is jaxremat:
        return True
    listed = getattr(module, "__all__", None)
    text = Path(module.__file__).read_text()
    return name in listed if listed is not None else f"{name} as {name}" in text


@pytest.mark.parametrize("path", exported())
def test_every_public_name_is_in_the_reference(path):
    """As a heading by the path that users write."""
    assert f"::: {path}\n" in API or f"`{path}`" in API, f"docs/api.md has no heading for {path}"


@pytest.mark.parametrize("path", exported())
def test_every_public_name_is_described(path):
    """In a sentence; functions with every argument, records with every field."""
    thing = _found(path)
    if not callable(thing):
        return
    text = inspect.getdoc(thing) or ""
    assert text, f"{path} has no docstring"
    for name in _parts(thing):
        assert re.search(rf"\b{name}\b", text), f"the docstring of {path} does not say what {name} is"


def _found(path: str):
    thing = jaxremat
    for part in path.split(".")[1:]:
        thing = getattr(thing, part)
    return thing


def _parts(thing) -> list[str]:
    if inspect.isclass(thing):
        return [field.name for field in dataclasses.fields(thing)] if dataclasses.is_dataclass(thing) else []
    return [name for name in inspect.signature(thing).parameters if not name.startswith("_")]
