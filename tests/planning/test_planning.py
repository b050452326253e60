"""One program, any number of budgets: what is done once, and what plans add up to."""

import contextlib
import functools
import itertools

import jax
import jax.numpy as jnp
import pytest

import jaxremat
from jaxremat.planner import decision
from jaxremat.planning.planning import Planning
from jaxremat.planning.request import checked_request


def layers(weights, x):
    for w in weights:
        x = jnp.tanh(x @ w)
    return jnp.sum(x * x)


def scanned(weights, x):
    return jnp.mean(jax.lax.scan(lambda x, w: (x + jnp.tanh(x @ w), None), x, weights)[0] ** 2)


def shapes(fun=layers, number=8):
    weight = (number, 64, 64) if fun is scanned else (64, 64)
    weights = jax.ShapeDtypeStruct(weight, jnp.float32)
    return weights if fun is scanned else [weights] * number, jax.ShapeDtypeStruct((2048, 64), jnp.float32)


def planning_of(fun, number=8, **options):
    asked = {"argnums": 0, "has_aux": False, "solver": "auto", "target": "cpu", "emit": "schedule", "verify": "compile"}
    return Planning(checked_request(fun, shapes(fun, number), seed=0, **{**asked, **options}))


@pytest.mark.parametrize("fun", [layers, scanned])
@pytest.mark.parametrize(
    "options",
    [
        {"budget": 0.75},
        {"emit": "segments"},
        {"allow": "chunk"},
        {"solver": "chen"},
        {"budget": "least"},
        {"budget": 9},
    ],
    ids=str,
)
def test_a_function_is_traced_once_for_a_plan_and_all_that_is_asked_of_it(fun, options):
    traced = []

    @functools.wraps(fun)
    def counted(*args):
        traced.append(args)
        return fun(*args)

    with contextlib.suppress(jaxremat.BudgetError):
        plan = jaxremat.plan(counted, *shapes(fun), **{"budget": 0.9, **options})
        jaxremat.verify(plan), str(plan), plan.explain(), plan._repr_html_(), plan.summary()
    assert len(traced) == 1


def test_several_budgets_share_what_was_traced_and_compiled():
    planning = planning_of(layers)
    plans = [planning.plan(budget) for budget in (1.0, 0.8, 0.8, "least")]
    assert plans[0].decision.emit == "plain" and plans[0].compilations == 1
    assert plans[2].compilations == plans[1].compilations > 1, "nothing new is compiled for the same budget"
    assert plans[3].compiled.peak_bytes <= plans[2].compiled.peak_bytes <= plans[2].budget_bytes
    assert all(earlier.solve_seconds <= later.solve_seconds for earlier, later in itertools.pairwise(plans))


def test_what_is_promised_is_what_a_prediction_plans():
    planning = planning_of(layers, verify="replay")
    limit = int(0.8 * planning.baseline.peak_bytes)
    over, seconds = planning.promise(limit)
    assert not over and planning.plan(limit).outcome.cost == seconds
    over, least_bytes = planning.promise(1)
    assert over and least_bytes >= planning.plan("least").peak_bytes


def test_overhead_is_told_against_the_program_as_written_where_parts_run_in_chunks():
    planning = planning_of(layers, verify="replay")
    again = planning.in_chunks(())
    assert again.plan(0.8).overhead == planning.plan(0.8).overhead
    assert again.plan(0.8).baseline_peak_bytes == planning.plan(0.8).baseline_peak_bytes


def test_what_is_compiled_is_not_differentiated_again(monkeypatch):
    def refuse(*_):
        raise AssertionError("the program was differentiated when it was searched")

    monkeypatch.setattr(decision, "differentiate", refuse)
    plan = jaxremat.plan(layers, *shapes(), budget=0.75, target="cpu")
    assert plan.decision.emit == "schedule" and plan.compiled.peak_bytes <= plan.budget_bytes
