"""Plans of steps that were made before: found again, told apart, in this process and on disk; harmless when damaged."""

import pickle

import jax
import numpy as np
import pytest
import step_programs

import jaxremat
from jaxremat.planning.memory import PLANS
from jaxremat.step import planned_step


@pytest.fixture
def searches(monkeypatch):
    """One entry per step that is searched."""
    made = []

    class Counted(planned_step.StepPlanning):
        def __init__(self, *args, **kwargs):
            made.append(args)
            super().__init__(*args, **kwargs)

    monkeypatch.setattr(planned_step, "StepPlanning", Counted)
    return made


STEP, ARGS = step_programs.deep(6, 512)


def planned(budget=0.7, fun=STEP, donate_argnums=0, verify="replay", **options):
    """A step of its own, as another call of `jaxremat.jit` makes it, and its plan."""
    step = jaxremat.jit(
        lambda *args: fun(*args), budget=budget, donate_argnums=donate_argnums, verify=verify, **options
    )
    return step, step.plan(*ARGS)


def test_an_equal_step_is_planned_once_in_a_process(searches):
    (_, first), (step, again) = planned(), planned()
    assert len(searches) == 1 and not first.is_plain
    assert again.summary() == first.summary() and str(again) == str(first)
    args = step_programs.copied(jax.tree.map(lambda x: np.full(x.shape, 0.01, x.dtype), ARGS))
    for a, b in zip(*map(step_programs.numbers, (step(*args), jax.jit(STEP)(*args))), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_what_was_compiled_is_not_compiled_again():
    (first, made), (again, found) = planned(verify="compile"), planned(verify="compile")
    assert first.compilations == made.compilations > 0 == again.compilations
    assert found.compiled == made.compiled is not None


@pytest.mark.parametrize(
    "other",
    [
        {"budget": 0.65},
        {"donate_argnums": ()},
        {"target": "h100"},
        {"allow": "narrow"},
        {"seed": 1},
        {"fun": lambda state, x: STEP(state, 2 * x)},
    ],
)
def test_another_question_is_planned_anew(searches, other):
    planned(), planned(**other)
    assert len(searches) == 2


def test_other_names_of_arguments_are_another_plan(searches):
    """They are told in what a plan says of its arguments."""
    for step in (lambda state, x: STEP(state, x), lambda state, x: STEP(state, x), lambda weights, x: STEP(weights, x)):
        jaxremat.jit(step, budget=0.7, donate_argnums=0, verify="replay").plan(*ARGS)
    assert len(searches) == 2


def test_attempts_with_fewer_compilations_are_told_from_plans(searches):
    planned(fun=STEP)
    jaxremat.jit(lambda *args: STEP(*args), budget=0.7, donate_argnums=0, verify="replay").attempt(1, *ARGS)
    assert len(searches) == 2


def test_what_is_remembered_is_data():
    planned()
    (stored,) = PLANS._made.values()
    assert len(pickle.dumps(stored)) < 20_000


def test_a_plan_is_found_again_on_disk(plan_folder, searches):
    _, first = planned()
    PLANS.clear()
    _, again = planned()
    assert len(searches) == 1 and len(list(plan_folder.iterdir())) == 1
    assert again.summary() == first.summary()


def test_a_damaged_file_is_passed_over_with_a_warning_and_written_again(plan_folder, searches, caplog):
    planned()
    (path,) = plan_folder.iterdir()
    whole = path.read_text()
    path.write_text(whole[:100])
    PLANS.clear()
    planned()
    assert len(searches) == 2 and "passed over" in caplog.text and len(path.read_text()) > 0.9 * len(whole)
