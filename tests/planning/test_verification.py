"""verify(plan): the compiled numbers, and warnings where a saving was undone."""

import jax
import jax.numpy as jnp
import pytest
from random_programs import arguments

import jaxremat

LAYERS = 16


def mlp(weights, x):
    for w in weights:
        with jax.named_scope("layer"):
            x = jnp.tanh(x @ w)
    return jnp.sum(x * x)


def with_auxiliary(weights, x):
    return mlp(weights, x), {"mean": x.mean()}


def shapes():
    return [jax.ShapeDtypeStruct((32, 32), jnp.float32)] * LAYERS, jax.ShapeDtypeStruct((1024, 32), jnp.float32)


@pytest.mark.parametrize("budget", [0.6, 1.0])
def test_the_report_repeats_what_the_plan_compiled(budget):
    plan = jaxremat.plan(mlp, *shapes(), budget=budget)
    report = jaxremat.verify(plan)
    assert abs(report.peak_bytes - plan.compiled.peak_bytes) <= 0.01 * plan.compiled.peak_bytes
    parts = report.argument_bytes + report.output_bytes + report.temp_bytes - report.alias_bytes
    assert report.peak_bytes == parts
    assert report.fits and report.target == "cpu" and report.compile_seconds > 0
    assert report.predicted_ratio == pytest.approx(plan.peak_bytes / report.peak_bytes)
    assert "fits" in str(report).splitlines()[0]


def test_auxiliary_results_and_several_arguments():
    plan = jaxremat.plan(with_auxiliary, *shapes(), budget=0.7, argnums=(0, 1), has_aux=True)
    assert jaxremat.verify(plan).peak_bytes == pytest.approx(plan.compiled.peak_bytes, rel=0.01)


def test_results_that_are_no_scalar():
    w, x = arguments()
    plan = jaxremat.plan(lambda w, x: {"y": jnp.tanh(jnp.tanh(x @ w) @ w)}, w, x, budget=1.0)
    assert jaxremat.verify(plan).peak_bytes == pytest.approx(plan.compiled.peak_bytes, rel=0.01)


def test_a_plan_that_does_not_fit_says_so():
    plan = jaxremat.plan(mlp, *shapes(), budget=0.6)
    small = type(plan)(**{**vars_of(plan), "budget_bytes": 1000})
    report = jaxremat.verify(small)
    assert not report.fits and "exceeds 1000 B" in str(report).splitlines()[0]


def vars_of(plan):
    return {name: getattr(plan, name) for name in plan.__dataclass_fields__}


def test_what_cannot_be_verified_is_refused():
    plan = jaxremat.plan(mlp, *shapes(), budget=0.9, verify="replay")
    with pytest.raises(jaxremat.ArgumentError, match="Use one of"):
        jaxremat.verify(plan, target="h9000")
    with pytest.raises(jaxremat.ArgumentError, match="takes a Plan"):
        jaxremat.verify(mlp)


@pytest.mark.aot
@pytest.mark.parametrize("target", ["h200", "tpu-v5e"])
def test_a_plan_for_one_target_is_verified_for_another(target):
    plan = jaxremat.plan(mlp, *shapes(), budget=0.6, verify="replay")
    report = jaxremat.verify(plan, target=target)
    assert report.target == target and report.peak_bytes > 0 and report.predicted_bytes > 0
