"""Plans that were made before: found again, told apart, in this process and on disk; harmless when damaged."""

import concurrent.futures
import os
import pickle
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxremat
from jaxremat.planning import entry
from jaxremat.planning.memory import PLANS
from jaxremat.planning.plan_cache import FOLDER
from jaxremat.solvers.chen import Chen

W, X = [0.1 * jnp.ones((32, 32))] * 6, jnp.ones((2048, 32))


def loss(ws, x):
    for w in ws:
        x = x + jnp.tanh(x @ w)
    return jnp.mean(x**2)


@pytest.fixture
def searches(monkeypatch):
    """One entry per program that is searched."""
    made = []

    class Counted(entry.Planning):
        def __init__(self, *args):
            made.append(args)
            super().__init__(*args)

    monkeypatch.setattr(entry, "Planning", Counted)
    return made


def planned(budget=0.6, fun=loss, **options):
    return jaxremat.plan(fun, W, X, budget=budget, **{"verify": "replay", **options})


def in_another_process(budget=0.6, fun=loss, **options):
    """As `planned`, where nothing is remembered in memory."""
    PLANS.clear()
    return planned(budget, fun, **options)


def test_nothing_is_written_unless_a_folder_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv(FOLDER, raising=False)
    monkeypatch.chdir(tmp_path)
    planned()
    assert not list(tmp_path.iterdir())


def scaled(scale):
    """A loss that closes over an array: the same program, whatever its values."""
    return lambda ws, x: jnp.sum(scale * loss(ws, x))


def squared(slope):
    """A loss with a derivative rule of its own: the same program, another gradient."""

    @jax.custom_vjp
    def square(x):
        return x**2

    square.defvjp(lambda x: (x**2, x), lambda x, g: (slope * g * jnp.sin(x) if slope > 2 else slope * g * x,))
    return lambda ws, x: loss(ws, square(x))


def test_an_equal_program_is_planned_once_in_a_process(searches):
    first, again = planned(), planned(fun=lambda ws, x: loss(ws, x))
    assert len(searches) == 1
    assert again.summary() == first.summary()
    np.testing.assert_array_equal(again.schedule, first.schedule)


def test_closures_over_other_constants_share_a_plan_and_keep_their_own(searches):
    for scale in (2.0, 3.0):
        fun = scaled(jnp.full((4,), scale))
        plan = planned(fun=fun)
        for a, b in zip(jax.grad(plan.apply(fun))(W, X), jax.grad(fun)(W, X), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5)
        plan.check_grads(W, X)
    assert len(searches) == 1


def test_constants_of_other_shapes_are_another_program(searches):
    planned(fun=scaled(jnp.ones(4))), planned(fun=scaled(jnp.ones(5)))
    assert len(searches) == 2


def test_static_arguments_that_change_the_program_are_another_plan(searches):
    layered = lambda ws, x, layers: loss(ws[: len(layers)], x)
    for layers in ("abcdef", "fedcba", "abcd"):
        jaxremat.plan(layered, W, X, layers, budget=0.8, verify="replay")
    assert len(searches) == 2


def test_other_derivative_rules_are_another_plan(searches):
    for slope in (2, 2, 3):
        planned(fun=squared(slope))
    assert len(searches) == 2


def test_other_names_of_arguments_are_another_plan(searches):
    for name in ("w", "w", "v"):
        jaxremat.plan(lambda p, x, name=name: loss(p[name], x), {name: W}, X, budget=0.6, verify="replay")
    assert len(searches) == 2


@pytest.mark.parametrize(
    "other", [{"budget": 0.7}, {"solver": "chen"}, {"target": "h100"}, {"allow": ("narrow",)}, {"seed": 1}]
)
def test_another_question_is_planned_anew(searches, other):
    planned(), planned(**other)
    assert len(searches) == 2


def test_a_solver_that_is_defined_again_is_asked_again(searches):
    for _ in range(2):

        class Own(Chen):
            """A solver as a notebook defines it, cell after cell."""

        planned(solver=Own)
    assert len(searches) == 2


def test_a_refusal_is_not_remembered(searches):
    for _ in range(2):
        with pytest.raises(jaxremat.BudgetError):
            planned(budget=1000)
    assert len(searches) == 2


def test_what_is_remembered_is_data():
    """It pickles, which no program does, and is small beside one."""
    planned(fun=scaled(jnp.ones(4)))
    (stored,) = PLANS._made.values()
    assert len(pickle.dumps(stored)) < 20_000


def test_a_plan_is_found_again_and_computes_the_same(plan_folder, searches):
    first, again = planned(), in_another_process()
    assert len(searches) == 1 and len(list(plan_folder.iterdir())) == 1
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
def test_another_question_is_another_plan(plan_folder, searches, other):
    planned()
    in_another_process(**other)
    assert len(searches) == len(list(plan_folder.iterdir())) == 2


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": "jaxremat plan", "version": 2}'])
def test_a_damaged_file_is_passed_over_with_a_warning_and_written_again(plan_folder, searches, caplog, text):
    planned()
    (path,) = plan_folder.iterdir()
    whole = path.read_text()
    path.write_text(text)
    in_another_process()
    assert len(searches) == 2 and "passed over" in caplog.text
    assert len(path.read_text()) > 0.9 * len(whole) and list(plan_folder.iterdir()) == [path]


def test_a_folder_that_cannot_be_written_costs_no_plan(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(FOLDER, str(tmp_path / "file" / "plans"))
    assert planned().peak_bytes > 0
    assert "not kept" in caplog.text


def test_several_may_write_at_once(plan_folder):
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        plans = list(pool.map(lambda _: planned(), range(3)))
    assert len(list(plan_folder.iterdir())) == 1
    assert len({plan.peak_bytes for plan in plans}) == 1


PROGRAM = """
import jax.numpy as jnp, jaxremat
loss = lambda w, x: jnp.mean(jnp.tanh(jnp.tanh(x @ w) @ w) ** 2)
jaxremat.plan(loss, jnp.ones((8, 8)), jnp.ones((64, 8)), budget=0.9, verify="replay", target="h200")
"""


def test_a_process_finds_what_another_one_wrote(plan_folder):
    for seed in ("1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": seed, "JAX_PLATFORMS": "cpu"}
        subprocess.run([sys.executable, "-c", PROGRAM], check=True, env=env)
    assert len(list(plan_folder.iterdir())) == 1
