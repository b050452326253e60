"""Values that wait rounded to bfloat16: with permission only, at half the bytes; gradients say what it costs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxremat
from jaxremat.backends.devices import resolve_target
from jaxremat.planner.choose import planner_for
from jaxremat.solvers.auto import Auto
from jaxremat.trace import jaxpr as jaxprs
from jaxremat.trace.joint import apply_flat, read_primal

LAYERS = 8


def unrolled(ws, x):
    for w in ws:
        x = x + jnp.tanh(x @ w)
    return jnp.mean(x**2)


def scanned(ws, x):
    return jnp.mean(lax.scan(lambda x, w: (x + jnp.tanh(x @ w), None), x, ws)[0] ** 2)


def arrays(scan, rows=512, width=128):
    ws = jax.random.normal(jax.random.key(0), (LAYERS, width, width)) / 12
    return ws if scan else list(ws), jax.random.normal(jax.random.key(1), (rows, width))


def rounded(plan):
    return [value for value in plan.saved if value.form == "bfloat16"]


@pytest.mark.parametrize("allow", [(), ("narrow",)])
def test_nothing_is_rounded_without_permission(allow):
    shapes = (
        [jax.ShapeDtypeStruct((1024, 1024), jnp.float32)] * LAYERS,
        jax.ShapeDtypeStruct((16384, 1024), jnp.float32),
    )
    plan = jaxremat.plan(unrolled, *shapes, budget=0.7, target="h200", verify="replay", allow=allow)
    assert bool(rounded(plan)) == bool(allow)
    assert any("rounded to bfloat16" in warning for warning in plan.warnings) == bool(allow)
    if allow:
        assert ", as bfloat16" in str(plan)
        exact = jaxremat.plan(unrolled, *shapes, budget=0.7, target="h200", verify="replay")
        assert plan.overhead < exact.overhead, "half the bytes leave more of the budget"


@pytest.mark.parametrize("scan", [False, True], ids=["unrolled", "scanned"])
def test_gradients_are_off_by_the_rounding_and_no_more(scan):
    """On a GPU's planner, run on the CPU: the rounding is the same."""
    fun, (ws, x) = (scanned, arrays(True)) if scan else (unrolled, arrays(False))
    planner, device = narrow_planner(fun, (ws, x)), resolve_target("h200")
    primal = planner.plain.problem.primal
    outcome = planner.fit(int(0.75 * planner.plain.replayed_bytes))
    gradient = jax.jit(jax.grad(lambda *args: apply_flat(primal, outcome.form.emitted(primal, device), args)))
    for got, own in zip(jax.tree.leaves(gradient(ws, x)), jax.tree.leaves(jax.jit(jax.grad(fun))(ws, x))):
        error = float(jnp.abs(got - own).max() / jnp.abs(own).max())
        assert error < LAYERS * 2**-8


def test_where_xla_would_undo_it_nothing_is_rounded():
    plan = jaxremat.plan(unrolled, *arrays(False), budget=0.7, verify="replay", allow=("narrow",))
    assert not rounded(plan)


def narrow_planner(fun, args):
    return planner_for(read_primal(fun, args, 0, False), resolve_target("h200"), Auto(), "schedule", 0, {"narrow"})


def test_half_precision_stays_as_it_is():
    args = jax.tree.map(lambda x: x.astype(jnp.bfloat16), arrays(False))
    assert not narrow_planner(unrolled, args).plain.problem.joint.round_trips


@pytest.mark.parametrize("wrong", [{"emit": "names"}, {"solver": "fastsa"}])
def test_other_forms_and_solvers_say_that_they_cannot(wrong):
    with pytest.raises(jaxremat.ArgumentError, match="narrow"):
        jaxremat.plan(unrolled, *arrays(False), budget=0.7, verify="replay", allow=("narrow",), **wrong)


def test_a_plan_is_saved_with_its_forms(tmp_path):
    args = arrays(True)
    plan = jaxremat.plan(scanned, *args, budget=0.6, verify="replay", allow=("narrow",))
    plan.save(tmp_path / "plan.json")
    again = jaxremat.load_plan(tmp_path / "plan.json", scanned, *args)
    assert [value.form for value in again.saved] == [value.form for value in plan.saved]
    for got, own in zip(*(jax.tree.leaves(jax.grad(p.apply(scanned))(*args)) for p in (again, plan))):
        np.testing.assert_array_equal(got, own)


def test_what_is_rounded_is_told_to_the_search_at_half_its_bytes():
    trips = narrow_planner(unrolled, arrays(False)).plain.problem.joint.round_trips
    assert trips and all(2 * jaxprs.size_bytes(trip.stored) == jaxprs.size_bytes(trip.source) for trip in trips)
