"""Steps whose scans leave values rounded or projected: with permission, and only where a gradient reads them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxremat
from jaxremat.backends.devices import resolve_target
from jaxremat.step.pairs import find_pairs, weights_of
from jaxremat.step.planner import ProgramPlanner
from jaxremat.trace import jaxpr as jaxprs
from jaxremat.trace.projections import DEVIATION
from jaxremat.trace.round_trips import BFLOAT16, LOSSLESS, NARROW, PROJECTED


def loss(ws, x):
    return jnp.mean(lax.scan(lambda x, w: (x + jnp.tanh(x @ w), None), x, ws)[0] ** 2)


def step(ws, x):
    value, grads = jax.value_and_grad(loss)(ws, x)
    return ws - 0.1 * grads, value


def smoothed(ws, x):
    """Values forward, then an estimate in reverse that reads them: no gradient."""

    def forward(x, w):
        x = jnp.tanh(x @ w)
        return x, jnp.sin(x)

    def backward(total, y):
        total = 0.9 * total + jnp.tanh(y * y)
        return total, total.mean()

    _, ys = lax.scan(forward, x, ws)
    return lax.scan(backward, jnp.zeros_like(x), ys, reverse=True)


def shapes(width, rows, layers=8):
    shape = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    return shape((layers, width, width)), shape((rows, width))


def test_wide_layers_are_rounded_with_permission_and_that_is_told():
    plans = [
        jaxremat.jit(
            step, budget=0.85, donate_argnums=0, target="h200", verify="replay", allow=allow
        ).plan(*shapes(4096, 16384))
        for allow in ((), ("narrow",))
    ]  # fmt: skip
    exact, rounded = plans
    assert "bfloat16" in rounded.decision.forms and "bfloat16" not in exact.decision.forms
    assert rounded.overhead < exact.overhead - 0.01
    assert any("rounded to bfloat16 (off by up to 0.002)" in warning for warning in rounded.warnings)
    assert not any("rounded" in warning for warning in exact.warnings)


@pytest.mark.parametrize("forms", NARROW)
def test_gradients_are_near(forms):
    args = jax.random.normal(jax.random.key(0), (8, 512, 512)) / 22, jax.random.normal(jax.random.key(1), (512, 512))
    jaxpr = jaxprs.inline_calls(jax.make_jaxpr(jax.value_and_grad(loss))(*args))
    planner = ProgramPlanner(jaxpr, resolve_target("cpu"), storages=(*LOSSLESS, *forms))
    outcome = planner.fit(int(0.8 * planner.plain.replayed_bytes))
    assert set(forms) <= set(outcome.decision.forms)
    (value, grads), (exact_value, exact_grads) = jax.jit(outcome.script.run)(args), jax.value_and_grad(loss)(*args)
    np.testing.assert_allclose(value, exact_value, rtol=1e-6)
    off = float(jnp.linalg.norm(grads - exact_grads) / jnp.linalg.norm(exact_grads))
    assert 0 < off < 0.01


def test_values_that_no_gradient_reads_are_never_rounded():
    forms = (*LOSSLESS, BFLOAT16.form)
    pairs = lambda fun: find_pairs(jaxprs.inline_calls(jax.make_jaxpr(fun)(*shapes(64, 256))), forms)
    assert [pair.storages for pair in pairs(step)] == [forms]
    assert [pair.storages for pair in pairs(smoothed)] == [LOSSLESS]


def doubled(ws, x):
    """Layers of two products: what the first one makes is not carried."""
    layer = lambda x, w: (jax.nn.relu(jax.nn.relu(x @ w[0]) @ w[1]), None)
    return jnp.mean(lax.scan(layer, x, ws)[0] ** 2)


def test_only_gradients_of_weights_are_estimates():
    ws = tuple(jax.random.normal(jax.random.key(k), (6, 256, 256)) / 12 for k in (0, 1))
    args = ws, jax.random.normal(jax.random.key(2), (2048, 256))
    jaxpr = jaxprs.inline_calls(jax.make_jaxpr(jax.value_and_grad(doubled, (0, 1)))(*args))
    planner = ProgramPlanner(jaxpr, resolve_target("cpu"), storages=(*LOSSLESS, PROJECTED.form))
    outcome = planner.fit(int(0.75 * planner.plain.replayed_bytes))
    assert PROJECTED.form in outcome.decision.forms
    run = jax.jit(outcome.script.run)
    value, first, second, of_x = run(jax.tree.leaves(args))
    wanted, ((own_first, own_second), own_of_x) = jax.value_and_grad(doubled, (0, 1))(*args)
    off = lambda a, b: float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b))
    assert max(off(value, wanted), off(first, own_first), off(of_x, own_of_x)) < 1e-5
    assert off(second, own_second) == pytest.approx(DEVIATION, rel=0.1)


def test_a_body_of_a_step_that_is_planned_by_itself_projects_nothing():
    """It may be given what has a cotangent that goes on."""
    forms = (*LOSSLESS, PROJECTED.form)
    args = (jax.ShapeDtypeStruct((6, 256, 256), jnp.float32),) * 2, jax.ShapeDtypeStruct((2048, 256), jnp.float32)
    jaxpr = jaxprs.inline_calls(jax.make_jaxpr(jax.grad(doubled))(*args))
    trips = lambda is_body: [
        trip.form
        for pair in find_pairs(jaxpr, forms, weights_of(jaxpr, is_body))
        for trip in pair.decided((), resolve_target("cpu").backend).round_trips
    ]
    assert PROJECTED.form in trips(False) and PROJECTED.form not in trips(True)


def test_projections_are_told_of_and_survive_the_file(tmp_path):
    shape = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    args = (shape((6, 2048, 2048)), shape((6, 2048, 2048))), shape((16384, 2048))

    def trained(ws, x):
        return jax.tree.map(lambda w, g: w - 0.1 * g, ws, jax.grad(doubled)(ws, x))

    options = {"budget": 0.75, "donate_argnums": 0, "target": "h200", "verify": "replay"}
    steps = [jaxremat.jit(trained, allow=allow, **options) for allow in ((), ("project",))]
    exact, plan = (each.plan(*args) for each in steps)
    assert PROJECTED.form in plan.decision.forms and PROJECTED.form not in exact.decision.forms
    assert plan.overhead < exact.overhead - 0.01
    assert any("right on average" in warning for warning in plan.warnings)
    plan.save(tmp_path / "step.json")
    loaded = steps[1].load_plan(tmp_path / "step.json", *args)
    assert loaded.decision == plan.decision and loaded.warnings == plan.warnings
