"""Plans on disk from one process to the next: found again, told apart, harmless when damaged."""

import concurrent.futures
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxremat
from jaxremat.planning import planning
from jaxremat.planning.plan_cache import FOLDER

W, X = [0.1 * jnp.ones((32, 32))] * 6, jnp.ones((2048, 32))


def loss(ws, x):
    for w in ws:
        x = x + jnp.tanh(x @ w)
    return jnp.mean(x**2)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER, str(tmp_path / "plans"))
    return tmp_path / "plans"


@pytest.fixture
def searches(monkeypatch):
    """One entry per program that is searched."""
    made = []

    class Counted(planning.Planning):
        def __init__(self, *args):
            made.append(args)
            super().__init__(*args)

    monkeypatch.setattr(planning, "Planning", Counted)
    return made


def planned(budget=0.6, fun=loss, **options):
    return jaxremat.plan(fun, W, X, budget=budget, **{"verify": "replay", **options})


def test_nothing_is_written_unless_a_folder_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv(FOLDER, raising=False)
    monkeypatch.chdir(tmp_path)
    planned()
    assert not list(tmp_path.iterdir())


def test_a_plan_is_found_again_and_computes_the_same(folder, searches):
    first, again = planned(), planned()
    assert len(searches) == 1 and len(list(folder.iterdir())) == 1
    assert again.summary() == first.summary()
    np.testing.assert_array_equal(again.schedule, first.schedule)
    for a, b in zip(jax.grad(again.apply(loss))(W, X), jax.grad(loss)(W, X), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


@pytest.mark.parametrize(
    "other",
    [
        {"budget": 0.7},
        {"solver": "chen"},
        {"target": "h100"},
        {"fun": lambda ws, x: 2 * loss(ws, x)},
        {"emit": "segments"},
    ],
)
def test_another_question_is_another_plan(folder, searches, other):
    planned()
    planned(**other)
    assert len(searches) == len(list(folder.iterdir())) == 2


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": "jaxremat plan", "version": 2}'])
def test_a_damaged_file_is_passed_over_with_a_warning_and_written_again(folder, searches, caplog, text):
    planned()
    (path,) = folder.iterdir()
    whole = path.read_text()
    path.write_text(text)
    planned()
    assert len(searches) == 2 and "passed over" in caplog.text
    assert len(path.read_text()) > 0.9 * len(whole) and list(folder.iterdir()) == [path]


def test_a_folder_that_cannot_be_written_costs_no_plan(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(FOLDER, str(tmp_path / "file" / "plans"))
    assert planned().peak_bytes > 0
    assert "not kept" in caplog.text


def test_several_may_write_at_once(folder):
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        plans = list(pool.map(lambda _: planned(), range(3)))
    assert len(list(folder.iterdir())) == 1
    assert len({plan.peak_bytes for plan in plans}) == 1


PROGRAM = """
import jax.numpy as jnp, jaxremat
loss = lambda w, x: jnp.mean(jnp.tanh(jnp.tanh(x @ w) @ w) ** 2)
jaxremat.plan(loss, jnp.ones((8, 8)), jnp.ones((64, 8)), budget=0.9, verify="replay", target="h200")
"""


def test_a_process_finds_what_another_one_wrote(folder):
    for seed in ("1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": seed, "JAX_PLATFORMS": "cpu"}
        subprocess.run([sys.executable, "-c", PROGRAM], check=True, env=env)
    assert len(list(folder.iterdir())) == 1
