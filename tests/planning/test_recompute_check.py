"""Recomputation that the compiler undid is found in the compiled program, and told with its place."""

import jax
import jax.numpy as jnp

import jaxremat
from jaxremat.emit import scheduled

LAYERS = 16


def mlp(weights, x):
    for w in weights:
        with jax.named_scope("layer"):
            x = jnp.tanh(x @ w)
    return jnp.sum(x * x)


def shapes():
    return [jax.ShapeDtypeStruct((32, 32), jnp.float32)] * LAYERS, jax.ShapeDtypeStruct((1024, 32), jnp.float32)


def test_a_saving_that_took_effect_is_no_warning():
    assert jaxremat.verify(jaxremat.plan(mlp, *shapes(), budget=0.6)).warnings == ()


def test_a_saving_that_the_compiler_undid_is_a_warning_with_its_place(monkeypatch):
    plan = jaxremat.plan(mlp, *shapes(), budget=0.6)
    monkeypatch.setattr(scheduled.lax, "optimization_barrier", lambda values: values)
    report = jaxremat.verify(plan)
    assert any("layer" in w and "test_recompute_check.py" in w and "found 0 times" in w for w in report.warnings)
