"""Plan files of version 1, as they were written then (`version_one/`), are read and do what they did."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gradient_programs import assert_same, count
from jax.ad_checkpoint import checkpoint_name

import jaxremat

FILES = Path(__file__).parent / "version_one"


def unrolled(ws, x):
    for w in ws:
        x = x + jnp.tanh(x @ w)
    return jnp.mean(x**2)


def scanned(ws, x):
    return jnp.mean(jax.lax.scan(lambda x, w: (x + jnp.tanh(x @ w), None), x, ws)[0] ** 2)


def named(ws, x):
    keeps = jax.checkpoint_policies.save_only_these_names("product")
    for w in ws:
        x = jax.checkpoint(lambda w, x: x + jnp.tanh(checkpoint_name(x @ w, "product")), policy=keeps)(w, x)
    return jnp.mean(x**2)


def arguments(fun):
    weights = jnp.asarray(np.random.default_rng(0).normal(size=(6, 16, 16)) / 4, jnp.float32)
    return weights if fun is scanned else list(weights), jnp.ones((512, 16))


@pytest.mark.parametrize(
    ("name", "fun", "products"),
    [
        ("plain", unrolled, 17),
        ("schedule", unrolled, 22),
        ("loops", scanned, 9),
        ("segments", unrolled, 21),
        ("own_names", named, 23),
    ],
)
def test_every_form_is_applied(name, fun, products):
    plan = jaxremat.load_plan(FILES / f"{name}.json", fun, *arguments(fun))
    assert count(plan.apply(fun), *arguments(fun)) == products, "it recomputes as it was decided"
    assert_same(jax.grad(plan.apply(fun))(*arguments(fun)), jax.grad(fun)(*arguments(fun)))


def test_names_and_their_policy():
    plan = jaxremat.load_plan(FILES / "names.json", unrolled, *arguments(unrolled))
    run = jax.checkpoint(plan.named(unrolled), policy=plan.policy)
    assert plan.target == "h200" and plan.policy.names
    assert_same(jax.grad(run)(*arguments(unrolled)), jax.grad(unrolled)(*arguments(unrolled)))


def test_it_is_written_again_as_version_two(tmp_path):
    plan = jaxremat.load_plan(FILES / "schedule.json", unrolled, *arguments(unrolled))
    plan.save(tmp_path / "plan.json")
    again = jaxremat.load_plan(tmp_path / "plan.json", unrolled, *arguments(unrolled))
    assert again.decision.to_json() == plan.decision.to_json() and str(again) == str(plan)


def test_another_program_is_refused():
    with pytest.raises(jaxremat.PlanMismatchError, match="another program"):
        jaxremat.load_plan(FILES / "schedule.json", lambda ws, x: 2 * unrolled(ws, x), *arguments(unrolled))
