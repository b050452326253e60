"""No number without a source: every numeric constant of the package says where it comes from.

On its line, above it, or below it: a derivation, a document, a line of a compiler, or a script in `benchmarks` that
prints why. What `benchmarks/constants.py` is named for, it must sweep.
"""

import ast
import importlib
import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "jaxremat").rglob("*.py"))


def numeric_constants(path: Path) -> list[tuple[str, str]]:
    """(name, what is said about it) of the constants of a file that are numbers, or made of numbers."""
    lines = path.read_text().split("\n")
    body = ast.parse("\n".join(lines)).body
    found = []
    for node, after in zip(body, [*body[1:], None]):
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        value = getattr(node, "value", None)
        if isinstance(target, ast.Name | ast.Tuple) and value is not None and _is_made_of_numbers(value):
            described = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            near = "\n".join(lines[node.lineno - 2 : node.end_lineno])
            above, _, own = near.partition("\n")
            said = re.findall(r"#.*", own) + ([above] if above.startswith("#") else [])
            found.append((ast.unparse(target), " ".join(said) + (str(after.value.value) if described else "")))
    return found


def _is_made_of_numbers(value: ast.expr) -> bool:
    if isinstance(value, ast.Dict):
        return bool(value.values) and all(map(_is_made_of_numbers, value.values))
    leaves = [node.value for node in ast.walk(value) if isinstance(node, ast.Constant)]
    names = {node.id for node in ast.walk(value) if isinstance(node, ast.Name)}
    return bool(leaves) and names <= {"np", "tuple"} and all(type(leaf) in (int, float) for leaf in leaves)


CONSTANTS = {
    f"{path.relative_to(ROOT / 'jaxremat').with_suffix('').as_posix().replace('/', '.')}.{name}": said
    for path in FILES
    if "show" not in path.parts
    for name, said in numeric_constants(path)
}


def test_there_are_constants():
    assert "solvers.mincut.structure._EARLY_SURCHARGE" in CONSTANTS


@pytest.mark.parametrize("name", CONSTANTS)
def test_a_constant_says_where_it_comes_from(name):
    assert CONSTANTS[name], f"{name} is a bare number: derive it, cite its source, or sweep it in benchmarks/"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("constants", ROOT / "benchmarks" / "constants.py")
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    return benchmark


@pytest.fixture(scope="module")
def sweeps(benchmark):
    return benchmark.SWEEPS


def test_what_is_said_to_be_swept_is_swept_and_what_is_swept_is_there(sweeps):
    claimed = {name for name, said in CONSTANTS.items() if "benchmarks/constants.py" in said}
    assert claimed <= set(sweeps) <= set(CONSTANTS)


def test_the_value_in_use_is_among_those_that_are_swept(sweeps):
    for name, (_, values) in sweeps.items():
        module, constant = name.rsplit(".", 1)
        used = getattr(importlib.import_module(f"jaxremat.{module}"), constant)
        assert any(np.array_equal(used, value) for value in values), name


def test_gradients_and_steps_are_scored(benchmark, monkeypatch):
    shape = benchmark.shape
    args = [(shape(8, 16), shape(8, 16), shape(16, 8))] * 3, shape(256, 8)
    step = benchmark.flat_step(lambda layers, x: benchmark.gated(layers, x), args)
    monkeypatch.setattr(benchmark, "GRADIENTS", ((benchmark.gated, args),))
    monkeypatch.setattr(benchmark, "step_programs", lambda: (step,))
    for (scored,) in (benchmark.gradients(), benchmark.steps(), benchmark.bounds()):
        assert scored.missed <= 3 and not scored.least > 1
    assert benchmark.gradients()[0].least < 0.9
