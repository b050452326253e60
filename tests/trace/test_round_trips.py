"""Masks that wait as bits: what the search may keep in their place, and that values and gradients stay the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxremat
from jaxremat.cost.pricing import price
from jaxremat.emit.scheduled import run_backward, run_forward
from jaxremat.emit.script import write_script
from jaxremat.graph.scheduled import schedule_program
from jaxremat.solvers.mincut.assemble import assemble_parts
from jaxremat.trace import jaxpr as jaxprs
from jaxremat.trace.joint import differentiate, trace_joint
from jaxremat.trace.primal import read_primal
from jaxremat.trace.round_trips import HOST, LOSSLESS, ON_HOST_OUTSIDE, round_trips_in, with_round_trips

W = [0.1 * jax.random.normal(jax.random.key(i), (64, 64)) for i in range(4)]
X = jax.random.normal(jax.random.key(9), (2048, 64))


def rectified(ws, x):
    for w in ws:
        x = jax.nn.relu(x @ w)
    return jnp.mean(x**2)


def dropped(ws, x):
    for i, w in enumerate(ws):
        keep = jax.random.bernoulli(jax.random.fold_in(jax.random.key(0), i), 0.9, x.shape)
        x = jnp.where(keep, jnp.tanh(x @ w), 0)
    return jnp.mean(x**2)


@pytest.mark.parametrize("width", [8, 13, 64])
def test_a_mask_comes_back_from_its_bits(width):
    joint = trace_joint(lambda w, x: jnp.sum(jax.nn.relu(x @ w) ** 2), jnp.ones((4, width)), jnp.ones((3, 4)))
    jaxpr = with_round_trips(joint.jaxpr, joint.backward, LOSSLESS)
    (trip,) = round_trips_in(jaxpr)
    assert trip.form == "bits" and trip.source.aval.dtype == trip.restored.aval.dtype == jnp.bool_
    assert jaxprs.size_bytes(trip.stored) == 3 * -(-width // 8)
    rng = np.random.default_rng(width)
    inputs = [jnp.asarray(rng.normal(size=v.aval.shape), v.aval.dtype) for v in jaxpr.invars]
    for a, b in zip(jaxprs.evaluate(joint.jaxpr, inputs), jaxprs.evaluate(jaxpr, inputs), strict=True):
        np.testing.assert_array_equal(a, b)


def test_only_masks_of_which_the_backward_reads_rows_of_a_byte_take_the_trip():
    def loss(w, x):
        y = jax.nn.relu(x @ w)  # rows of four
        return jnp.sum(jnp.where(jnp.any(y > 0), y, 2 * y))

    joint = trace_joint(loss, jnp.ones((4, 4)), jnp.ones((3, 4)))
    assert not round_trips_in(with_round_trips(joint.jaxpr, joint.backward, LOSSLESS))


@pytest.mark.parametrize("fun", [rectified, dropped])
def test_masks_as_bits_change_no_gradient(fun):
    plain = jaxremat.plan(fun, W, X, budget=1.0).baseline_peak_bytes
    made = jaxremat.plan(fun, W, X, budget=int(0.9 * plain))
    assert made.compiled.peak_bytes <= 0.9 * plain
    assert any(value.form == "bits" for value in made.saved)
    wanted = jax.jit(jax.value_and_grad(fun))(W, X)
    given = jax.jit(jax.value_and_grad(made.apply(fun)))(W, X)
    for a, b in zip(jax.tree.leaves(wanted), jax.tree.leaves(given), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9)


def test_a_mask_that_is_packed_only_where_it_is_read_is_not_packed():
    """Bits are for waiting: what runs again early, and is read late, has its mask until then."""
    joint = differentiate(read_primal(dropped, (W, X), 0, False), None, LOSSLESS)
    graph = price(joint)
    steps, start = assemble_parts(graph, np.zeros(graph.num_values, bool))
    script = write_script(joint, schedule_program(graph, steps, backward_start=start))
    ways = {id(eqn) for trip in joint.round_trips for eqn in (trip.way_there, trip.way_back)}
    assert ways & {id(joint.eqns[node]) for node in steps[start:]} and len(script.backward) > 1
    assert not ways & {id(eqn) for segment in script.backward for eqn in segment.eqns}

    inputs, cotangents = jax.tree.leaves((W, X)), [jnp.ones(())]
    outputs, residuals = run_forward(joint, script, inputs)
    given = [*outputs, *run_backward(joint, script, residuals, cotangents)]
    assert joint.direct is not None
    wanted = jaxprs.evaluate(joint.direct.jaxpr, [*inputs, *cotangents])
    for a, b in zip(wanted, given, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("saved", ["masks", "bits"])
def test_a_value_that_is_saved_has_no_way_back(saved):
    """In whatever form: what is saved as it is needs none, what is saved as bits comes back where it is read."""
    joint = differentiate(read_primal(rectified, (W, X), 0, False), None, LOSSLESS)
    graph = price(joint)
    keep = np.ones(graph.num_values, bool)
    for trip in joint.round_trips:
        keep[[joint.values.index(v) for v in (trip.stored, trip.restored)]] = False
        keep[joint.values.index(trip.source)] = saved == "masks"
        keep[joint.values.index(trip.stored)] = saved == "bits"
    steps, start = assemble_parts(graph, keep)
    script = write_script(joint, schedule_program(graph, steps, backward_start=start))
    ways = {id(eqn) for trip in joint.round_trips for eqn in (trip.way_there, trip.way_back)}
    late = [id(eqn) for segment in script.backward for eqn in segment.eqns if id(eqn) in ways]
    assert len(late) == (0 if saved == "masks" else len(joint.round_trips))

    inputs, cotangents = jax.tree.leaves((W, X)), [jnp.ones(())]
    outputs, residuals = run_forward(joint, script, inputs)
    given = [*outputs, *run_backward(joint, script, residuals, cotangents)]
    assert joint.direct is not None
    for a, b in zip(jaxprs.evaluate(joint.direct.jaxpr, [*inputs, *cotangents]), given, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9)


def test_a_plan_file_keeps_the_forms(tmp_path):
    made = jaxremat.plan(rectified, W, X, budget=0.75)
    made.save(tmp_path / "plan.json")
    loaded = jaxremat.load_plan(tmp_path / "plan.json", rectified, W, X)
    forms = [[value.form for value in plan.saved] for plan in (made, loaded)]
    assert forms[0] == forms[1] and "bits" in forms[0]


def test_what_only_the_forward_reads_may_wait_on_the_host_as_rows():
    """No equation reads late here, so that every trip is for what may run again."""

    def loss(w, x):
        x = jnp.exp(x)
        return jnp.sum((x - jnp.mean(x, -1, keepdims=True)) @ w)

    joint = trace_joint(loss, jnp.ones((1024, 8)), jnp.ones((1, 64, 32, 1024)))
    late = np.zeros(len(joint.eqns), bool)
    trips = round_trips_in(with_round_trips(joint.jaxpr, late, (ON_HOST_OUTSIDE,)))
    assert not round_trips_in(with_round_trips(joint.jaxpr, late, (HOST.form,)))
    assert {trip.form for trip in trips} == {HOST.form}
    assert {trip.restored.aval.shape for trip in trips} == {(1, 64, 32, 1024)}
    assert {trip.stored.aval.shape for trip in trips} == {(64 * 32, 1024)}
