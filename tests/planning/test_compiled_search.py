"""What is compiled in search of a plan, and how little where there is none."""

import jax
import jax.numpy as jnp
import pytest

import jaxremat
from jaxremat.planning.executable import compile_program


def refuse(fun, args, **options):
    with pytest.raises(jaxremat.BudgetError) as caught:
        jaxremat.plan(fun, *args, **options)
    return caught.value


def stack(p, x):
    for w in p:
        x = x + jnp.tanh(x @ w)
    return jnp.mean(x**2)


def stack_arguments():
    return [jax.ShapeDtypeStruct((64, 64), jnp.float32)] * 6, jax.ShapeDtypeStruct((4096, 64), jnp.float32)


@pytest.fixture
def compilations(monkeypatch):
    """The peaks of what planning compiles, as it goes."""
    peaks = []

    def counted(*args):
        compiled = compile_program(*args)
        peaks.append(compiled.report.peak_bytes)
        return compiled

    monkeypatch.setattr("jaxremat.planning.subject.compile_program", counted)
    return peaks


@pytest.mark.parametrize("verify", ["compile", "replay"])
@pytest.mark.parametrize("budget", [1000, 0.05])
def test_a_budget_below_arguments_and_results_takes_one_compilation(compilations, monkeypatch, budget, verify):
    """Beside that of the program as written, where every plan is compiled."""
    monkeypatch.setattr("jaxremat.planner.schedules.SchedulePlanner.fit", None)
    error = refuse(stack, stack_arguments(), budget=budget, verify=verify)
    assert len(compilations) == (2 if verify == "compile" else 1) and error.min_peak_bytes == min(compilations)
    assert sum(occupant.bytes for occupant in error.occupants) == error.min_peak_bytes
    assert "no plan can go below them" in str(error) and 'budget="least"' in str(error)


def test_the_peak_that_a_quick_refusal_names_is_reached():
    error = refuse(stack, stack_arguments(), budget=1000)
    plan = jaxremat.plan(stack, *stack_arguments(), budget=error.min_peak_bytes)
    assert plan.compiled.peak_bytes <= error.min_peak_bytes


def test_a_refusal_compiles_no_more_than_a_plan(compilations):
    least = jaxremat.plan(stack, *stack_arguments(), budget="least").compiled.peak_bytes
    compilations.clear()
    error = refuse(stack, stack_arguments(), budget=int(0.8 * least))
    assert error.min_peak_bytes <= 1.1 * least and len(compilations) <= 4


def test_what_is_predicted_to_be_far_below_any_plan_takes_one_compilation(compilations):
    args = [jax.ShapeDtypeStruct((256, 256), jnp.float32)] * 6, jax.ShapeDtypeStruct((65536, 256), jnp.float32)
    error = refuse(stack, args, budget=0.05, verify="replay")
    assert compilations == [error.min_peak_bytes]
    assert sum(occupant.bytes for occupant in error.occupants) == error.min_peak_bytes
