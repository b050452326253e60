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
RUN_WHEN_BUILT = ("gallery",)
"""Pages whose blocks the documentation's build runs, to show what they make."""


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in WITH_PYTHON if p.stem not in RUN_WHEN_BUILT], ids=lambda page: page.stem)
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


def _found(path: str):
    thing = jaxremat
    for part in path.split(".")[1:]:
        thing = getattr(thing, part)
    return thing


@pytest.mark.parametrize("path", exported())
def test_every_public_name_is_in_the_reference(path):
    """As a heading by the path that users write."""
    assert f"::: {path}\n" in API or f"`{path}`" in API, f"docs/api.md has no heading for {path}"


RAISE_NOTHING = {"jaxremat.calibrate", "jaxremat.compact.default_select", "jaxremat.compact.projection"}
AMOUNT = re.compile(r"(?:.*_)?(?:budget|keep|costs?|overhead|time_limit|margin)")
UNIT = re.compile(r"\b(?:bytes|seconds?|fractions?|units?)\b")
ALGORITHMS = [path for path in exported() if hasattr(_found(path), "propose") and "Solver" not in path]
ALGORITHMS += ["jaxremat.attention.dot_product_attention", "jaxremat.attention.rewrite", "jaxremat.compact.CompAct"]
CALLABLES = [path for path in exported() if callable(_found(path))]


@pytest.mark.parametrize("path", CALLABLES)
def test_every_argument_and_field_is_described(path):
    """Amounts with their unit, arrays with their shape, here or in the annotation."""
    assert inspect.getdoc(_found(path)), f"{path} has no docstring"
    described = entries(path)
    for name, annotation in _parts(_found(path)).items():
        assert name in described, f"the docstring of {path} does not say what {name} is"
        assert not AMOUNT.fullmatch(name) or UNIT.search(described[name]), f"{path}: {name} has no unit"
        if re.search(r"ndarray|Array\b|ArrayLike", annotation):
            assert re.search(r"Array\w*, *['\"]|ndarray, *['\"]", annotation) or "[" in described[name], (
                f"{path}: {name} has no shape"
            )


@pytest.mark.parametrize("path", [path for path in CALLABLES if not inspect.isclass(_found(path))])
def test_every_function_says_what_it_returns_and_raises(path):
    text = inspect.getdoc(_found(path))
    assert "Returns:" in text or "Returns " in text, f"{path} does not say what it returns"
    assert path in RAISE_NOTHING or "Raises:" in text or "It raises" in text, f"{path} does not say what it raises"


@pytest.mark.parametrize("path", ALGORITHMS)
def test_every_algorithm_has_its_source(path):
    thing = _found(path)
    told = (inspect.getdoc(thing) or "") + (inspect.getmodule(thing).__doc__ or "")
    assert re.search(r"\b(19|20)\d\d\b", told), f"{path} names no paper with its year"


def entries(path: str) -> dict[str, str]:
    """What a docstring says of each argument or field."""
    text = inspect.getdoc(_found(path))
    said: dict[str, str] = {}
    for section in re.findall(r"^(?:Args|Attributes):\n((?:  .*\n|\n)+)", text + "\n", re.M):
        for names, what in re.findall(r"^  (\*{0,2}\w+(?:, \*{0,2}\w+)*): ((?:.*\n)(?:    .*\n)*)", section, re.M):
            said |= dict.fromkeys(re.findall(r"\w+", names), what)
    return said


def _parts(thing) -> dict[str, str]:
    """The annotations of what a function takes, or of a record's fields."""
    if inspect.isclass(thing):
        return {f.name: str(f.type) for f in dataclasses.fields(thing)} if dataclasses.is_dataclass(thing) else {}
    return {name: str(p.annotation) for name, p in inspect.signature(thing).parameters.items() if name[0] != "_"}
