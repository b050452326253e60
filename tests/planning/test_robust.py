"""The same plan every time, in every thread and process, under every configuration; nothing global changes."""

import concurrent.futures
import functools
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_stacks import attending, scanned
from random_programs import arguments, random_program

import jaxremat
from jaxremat.base.errors import TargetError
from jaxremat.planning.memory import PLANS

SEED = 11


def digest(plan):
    return hashlib.sha256(json.dumps(plan.decision.to_json(), sort_keys=True).encode()).hexdigest()


def planned(seed=SEED, **options):
    return jaxremat.plan(random_program(seed), *arguments(), budget=0.7, verify="replay", **options)


@functools.cache
def first(seed=SEED):
    """A plan that is made once, and forgotten, so that later ones are really made."""
    plan = planned(seed)
    PLANS.clear()
    return plan


def test_planning_twice_gives_the_same_plan():
    assert digest(first()) == digest(planned())


def test_another_process_gives_the_same_plan():
    here = Path(__file__).parent
    helpers = str(here.parent / "helpers")
    code = f"import sys; sys.path.append({helpers!r}); import test_robust as t; print(t.digest(t.planned()))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=here, check=True, timeout=200
    )
    assert done.stdout.strip() == digest(first())


def test_threads_plan_at_once():
    alone = [digest(first(seed)) for seed in (SEED, SEED + 1)]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda seed: digest(planned(seed)), (SEED, SEED + 1)))
    assert together == alone


def test_planning_changes_no_configuration():
    before = dict(jax.config.values)
    planned()
    assert dict(jax.config.values) == before


def test_importing_changes_no_configuration():
    code = "import jax; before = dict(jax.config.values); import jaxremat; assert dict(jax.config.values) == before"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=200)


@pytest.mark.parametrize(
    "option, value",
    [
        ("jax_enable_x64", True),
        ("jax_default_matmul_precision", "highest"),
        ("jax_numpy_dtype_promotion", "strict"),
        ("jax_debug_nans", True),
    ],
)
def test_plans_survive_configurations(option, value):
    w, x = arguments()

    def program(w, x):
        for _ in range(4):
            x = jnp.tanh(x @ w) * jnp.sin(x)
        return jnp.sum(x * x)

    before = getattr(jax.config, option)
    jax.config.update(option, value)
    try:
        plan = jaxremat.plan(program, w, x, budget=0.8, verify="replay")
        plain, ours = jax.jit(jax.grad(program))(w, x), jax.jit(jax.grad(plan.apply(program)))(w, x)
        plan.check_grads(w, x)
    finally:
        jax.config.update(option, before)
    np.testing.assert_allclose(plain, ours, rtol=1e-4, atol=1e-5)


def test_a_plan_made_under_one_precision_runs_under_another():
    w, x = arguments()
    plan, fun = first(), random_program(SEED)
    before = jax.config.jax_debug_nans
    jax.config.update("jax_debug_nans", True)
    try:
        ours = jax.jit(jax.grad(plan.apply(fun)))(w, x)
    finally:
        jax.config.update("jax_debug_nans", before)
    np.testing.assert_allclose(jax.jit(jax.grad(fun))(w, x), ours, rtol=1e-3, atol=1e-5)


def unrolled(ws, x):
    return jnp.mean(functools.reduce(lambda x, w: x + jnp.tanh(x @ w), ws, x) ** 2)


@pytest.mark.parametrize("budget", [1000, 0.01])
@pytest.mark.parametrize("target", ["tpu-v5e", "h200"])
@pytest.mark.parametrize("fun", [scanned, attending, unrolled], ids=lambda f: f.__name__)
def test_a_prediction_alone_refuses_nothing_where_no_compiler_is(fun, target, budget, monkeypatch):
    """The smallest plan is made, and says that it is over the budget."""

    def not_here(*_, **__):
        raise TargetError("not installed")

    monkeypatch.setattr("jaxremat.planning.subject.compile_program", not_here)
    args = [jax.ShapeDtypeStruct((64, 64), jnp.bfloat16)] * 4, jax.ShapeDtypeStruct((512, 64), jnp.bfloat16)
    made = jaxremat.plan(fun, *args, budget=budget, target=target, verify="replay")
    assert made.peak_bytes <= made.baseline_peak_bytes and made.compiled is None
    assert any("over budget" in told and str(made.peak_bytes) in told for told in made.warnings)
