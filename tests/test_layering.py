"""The order of the rooms: imports point backwards along the flow of data; only `base.compat` uses the inside of JAX."""

import ast
import graphlib
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "jaxremat"
RANKS = (
    ("base",),
    ("graph",),
    ("trace",),
    ("backends",),
    ("cost",),
    ("chunk", "compact"),
    ("attention",),
    ("solvers",),
    ("emit",),
    ("loops",),
    ("planner",),
    ("compiled",),
    ("report",),
    ("show",),
    ("planning",),
    ("step",),
    ("linen", "nnx"),
    ("commands",),
    ("__init__", "__main__"),
)
RANK = {room: rank for rank, rooms in enumerate(RANKS) for room in rooms}
FILES = sorted(PACKAGE.rglob("*.py"))
TESTS = sorted(Path(__file__).parent.rglob("test_*.py"))
ACROSS = {
    "chunk": ("inside_checkpoints",),
    "cost": ("cpu_rules", "softmax"),
    "emit": ("effects_and_keys", "refusals_and_aux", "saving", "transformations"),
    "loops": ("branches", "shard_map"),
    "planning": (
        *("arguments", "fuzz", "integer_state", "meshes", "policy", "refs", "robust", "sharing", "solver_names"),
    ),
    "show": ("browser",),
    "solvers": ("conformance",),
    "step": ("meshes",),
}
"""By room: what is asked of several modules at once."""


def room_of(path: Path) -> str:
    inside = path.relative_to(PACKAGE)
    return inside.parts[0] if len(inside.parts) > 1 else inside.stem


def imported_modules(path: Path) -> list[tuple[str, bool]]:
    """(module, whether it is imported inside a function) of every import in a file."""
    tree = ast.parse(path.read_text())
    top = set(ast.walk(tree)) - {n for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for n in ast.walk(f)}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            from_package = node.module == "jaxremat"
            names = [f"jaxremat.{alias.name}" for alias in node.names] if from_package else [node.module]
            found += [(name, node not in top) for name in names]
        elif isinstance(node, ast.Import):
            found += [(alias.name, node not in top) for alias in node.names]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_backwards(path):
    room = room_of(path)
    assert room in RANK, f"{room} has no place in the order of the rooms: give it one here and in docs/architecture.md"
    for module, is_delayed in imported_modules(path):
        if module.split(".")[0] != "jaxremat" or module == "jaxremat":
            continue
        other = module.split(".")[1]
        assert other in RANK, f"{other} has no place in the order of the rooms"
        assert RANK[other] <= RANK[room], f"{path.name} ({room}) imports {module} ({other}), which comes after it"
        assert not is_delayed, f"{path.name} imports {module} inside a function: that hides a cycle"


def test_files_import_each_other_in_no_circle():
    """Not for types alone, either."""
    module_of = {path: ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in FILES}
    imports = {module: {name for name, _ in imported_modules(path)} for path, module in module_of.items()}
    graphlib.TopologicalSorter(imports).prepare()


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_compat_uses_the_inside_of_jax(path):
    private = [module for module, _ in imported_modules(path) if module.startswith("jax._src")]
    assert path.name == "compat.py" or not private, f"{path.name} imports {private}; add what it needs to compat.py"


def test_the_map_of_the_house_is_true():
    """docs/architecture.md lists the rooms in their order, and names files that are there."""
    text = (PACKAGE.parent / "docs" / "architecture.md").read_text()
    table = text[text.index("| room |") : text.index("One file answers")]
    rows = [row.split("|")[1] for row in table.splitlines() if row.startswith("| `")]
    listed = [name.rstrip("/") for row in rows for name in re.findall(r"`(\w+/?)`", row)]
    assert [room for room in listed if room in RANK] == [room for rank in RANKS for room in rank]
    for path in re.findall(r"`(\w+(?:/\w+)+)(?:\.py)?`", text):
        places = [PACKAGE / path, PACKAGE / f"{path}.py", PACKAGE.parent / f"{path}.py", PACKAGE.parent / path]
        assert any(place.exists() for place in places), f"docs/architecture.md names {path}, which is not there"


@pytest.mark.parametrize("path", [path for path in FILES if path.name == "__init__.py"], ids=lambda p: p.parent.name)
def test_every_room_has_its_sentence(path):
    told = ast.get_docstring(ast.parse(path.read_text())) or ""
    assert told.split("\n")[0].endswith("."), f"{path.parent.name} does not say what it holds"


def test_importing_the_package_prints_nothing_and_starts_no_device(tmp_path):
    import subprocess
    import sys

    code = "import jaxremat, jax._src.xla_bridge as b; assert not b._backends, b._backends"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""


def test_no_two_classes_share_a_name():
    """One name is one concept, wherever it is read."""
    where: dict[str, list[str]] = {}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef | ast.TypeAlias):
                name = node.name if isinstance(node, ast.ClassDef) else node.name.id
                where.setdefault(name, []).append(str(path.relative_to(PACKAGE)))
    shared = {name: paths for name, paths in where.items() if len(paths) > 1}
    assert not shared, f"one name, several concepts: {shared}"


@pytest.mark.parametrize("path", [path for path in TESTS if path.parent.name in RANK], ids=lambda p: p.stem)
def test_a_test_is_named_for_a_module_or_for_what_several_do(path):
    room, tested = path.parent.name, path.stem.removeprefix("test_")
    inside = [module.relative_to(PACKAGE / room).with_suffix("") for module in FILES if room_of(module) == room]
    names = {"_".join(module.parts[i:j]) for module in inside for i in range(2) for j in range(i + 1, 4)}
    is_of_one = any(tested == name or tested.startswith(f"{name}_") for name in names if name)
    assert is_of_one or tested in ACROSS.get(room, ()), f"name {path.name} for its module, or list it in ACROSS"


LONG = 60  # lines; what is shorter is tested with what uses it
ELSEWHERE = {
    "chunk/rewriting/sliced_part": "chunk/test_sliced",
    "commands": "test_command_line",
    "planning/entry": "planning/test_planning",
    "show/described": "report/test_rows",
    "step/planned_step": "step/test_jit",
}
"""Modules whose tests go by what users call: the file that has them."""


LONG_ONES = [path for path in FILES if len(path.read_text().splitlines()) > LONG]


@pytest.mark.parametrize("path", LONG_ONES, ids=lambda path: path.stem)
def test_a_module_has_tests_of_its_own(path):
    module = path.relative_to(PACKAGE).with_suffix("")
    if elsewhere := ELSEWHERE.get(module.as_posix()):
        assert (Path(__file__).parent / f"{elsewhere}.py").is_file()
        return
    parts = module.parts[1:] or module.parts
    names = {"_".join(parts[i:]) for i in range(len(parts))}
    tested = [test.stem.removeprefix("test_") for test in TESTS]
    is_tested = any(test == name or test.startswith(f"{name}_") for test in tested for name in names)
    assert is_tested, f"write tests of {module}, in a file of its name"


def test_modules_that_are_tested_elsewhere_are_there():
    assert set(ELSEWHERE) <= {path.relative_to(PACKAGE).with_suffix("").as_posix() for path in LONG_ONES}


def test_what_several_modules_do_is_tested():
    listed = {(room, name) for room, names in ACROSS.items() for name in names}
    assert listed <= {(path.parent.name, path.stem.removeprefix("test_")) for path in TESTS}
