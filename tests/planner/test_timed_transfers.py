"""Values of unrolled programs that wait on the host: the schedule around the copies, its values, and its bytes."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxremat
from jaxremat.backends.devices import resolve_target
from jaxremat.emit.script import write_script
from jaxremat.planner.choose import planner_for
from jaxremat.planner.hosted import Pace
from jaxremat.planner.timed import by_peak
from jaxremat.planner.transfers import bytes_on_host, transfers_of
from jaxremat.planning.recompute_check import copies_undone
from jaxremat.solvers.auto import Auto
from jaxremat.trace import jaxpr as jaxprs
from jaxremat.trace.primal import apply_flat, read_primal

LAYERS = 8
VALUE_BYTES = 16384 * 1024 * 4
H200 = resolve_target("h200")


def shapes(rows=16384, width=1024):
    return [jax.ShapeDtypeStruct((width, width), jnp.float32)] * LAYERS, jax.ShapeDtypeStruct(
        (rows, width), jnp.float32
    )


def layered(ws, x):
    for w in ws:
        x = x + jnp.tanh(x @ w)
    return jnp.mean(x**2)


def waved(ws, x):
    """What enters a layer is read by the forward alone; a product makes its sine on the way."""
    for w in ws:
        x = x + jnp.tanh(jnp.sin(x) @ w)
    return jnp.mean(x**2)


def planner(args=None, target=H200, host_budget_bytes=None, fun=layered):
    return planner_for(
        read_primal(fun, args or shapes(), 0, False), target, Auto(), "schedule", 0, {"offload"}, host_budget_bytes
    )


@pytest.fixture(scope="module")
def moved():
    """The program as written with everything on the host that waits at its peak."""
    planning = planner()
    return planning, planning._moved(planning.plain, 0)


def test_what_is_moved_takes_no_bytes_of_the_device(moved):
    planning, outcome = moved
    told = transfers_of(outcome, H200)
    assert told.out_bytes == told.back_bytes >= (2 * LAYERS - 4) * VALUE_BYTES
    assert outcome.peak_bytes < planning.plain.peak_bytes - 0.7 * told.out_bytes
    values = outcome.problem.joint.values
    saved = [values[value] for value in outcome.program.saved.tolist()]
    assert sum(map(jaxprs.array_bytes, filter(jaxprs.is_on_host, saved))) == told.out_bytes


def test_a_slow_link_shows_in_the_cost(moved):
    planning, outcome = moved
    told = transfers_of(outcome, H200)
    rate = H200.sustained_host_bytes_per_second
    assert told.exposed_seconds > told.out_bytes / rate - planning.plain.cost > 0, "one way may run beside the other"
    assert outcome.cost > planning.plain.cost + told.exposed_seconds / 2


def test_every_fetch_runs_ahead_of_its_reader(moved):
    outcome = moved[0]._moved_at(moved[0].plain, 0, moved[0]._pace(moved[0].plain))
    joint, program = outcome.problem.joint, outcome.program
    steps, node_of = program.steps.tolist(), {id(eqn): node for node, eqn in enumerate(joint.eqns)}
    saved = {joint.values[value] for value in program.saved.tolist()}
    taken = [trip for trip in joint.round_trips if trip.form == "host" and trip.stored in saved]
    for trip in taken:
        fetched = steps.index(node_of[id(trip.way_back)], program.backward_start)
        read = min(
            step
            for step, node in enumerate(steps[program.backward_start :], program.backward_start)
            if trip.restored in jaxprs.vars_of(joint.eqns[node].invars)
        )
        between = [step for step in program.barriers if fetched < step <= read]
        assert between or fetched == program.backward_start, "nothing runs while it is copied"


def test_copies_run_by_the_clock_of_the_link():
    """Steps of a second, copies of two: the second waits for the first, and fetches end when their values are read."""
    pace = Pace(np.arange(11.0), bytes_per_second=1.0)
    assert pace.copied([(1, 2), (2, 2), (8, 2)]) == [(1, 3), (3, 5), (8, 10)]
    assert pace.fetched([(3, 2), (6, 2), (7, 2)]) == [1, 3, 5]


def test_copies_that_hide_take_no_time_and_others_take_all_of_it():
    """Layers so wide that a product takes as long as the copy of its result."""
    planning = planner(shapes(rows=8192, width=8192))
    peak_bytes = planning.plain.peak_bytes - 3 * 2**28
    hidden = planning._moved_at(planning.plain, peak_bytes, planning._pace(planning.plain))
    shown = planning._moved_at(planning.plain, peak_bytes, None)
    told, also = transfers_of(hidden, H200), transfers_of(shown, H200)
    assert told.out_bytes == also.out_bytes >= 3 * 2**28
    assert told.exposed_seconds < 0.1 * told.out_bytes / H200.sustained_host_bytes_per_second
    assert also.exposed_seconds > 0.9 * also.out_bytes / H200.sustained_host_bytes_per_second
    assert planning.fit(peak_bytes).cost < shown.cost


@pytest.mark.parametrize("fun", [layered, waved])
@pytest.mark.parametrize("share", [1.0, 0.75], ids=["as written", "with recomputation"])
def test_gradients_are_those_of_the_function(share, fun):
    """The CPU runs the same copies, inside of one memory."""
    planning = planner(shapes(rows=1024, width=256), fun=fun)
    outcome = planning._moved(planning.own.fit(int(share * planning.plain.peak_bytes)), 0)
    assert transfers_of(outcome, H200).out_bytes
    emitted = outcome.form.emitted(planning.own.primal, H200)
    ws = [jax.random.normal(jax.random.key(k), (256, 256)) / 16 for k in range(LAYERS)]
    x = jax.random.normal(jax.random.key(9), (1024, 256))
    got = jax.jit(jax.grad(lambda *args: apply_flat(planning.own.primal, emitted, args)))(ws, x)
    for own, given in zip(jax.jit(jax.grad(fun))(ws, x), got):
        np.testing.assert_allclose(given, own, rtol=1e-4, atol=1e-6)


def test_what_layers_begin_again_with_waits_on_the_host():
    """Recomputation keeps what enters each layer, which no equation of the backward reads."""
    planning = planner(fun=waved)
    alone = planning.own.fit(5 * planning.plain.peak_bytes // 9)
    outcome = planning._moved(alone, 0)
    joint = planning.own._problem.joint
    may_move = {joint.values[value] for value in alone.program.saved.tolist() if value in planning._hosting.bytes_of}
    read_late = {v for eqn, late in zip(joint.eqns, joint.backward) if late for v in jaxprs.vars_of(eqn.invars)}
    assert may_move - read_late
    assert outcome.peak_bytes <= alone.peak_bytes - VALUE_BYTES


def test_over_a_mesh_values_wait_on_the_host_with_their_own_axes():
    mesh = jax.sharding.AbstractMesh((2,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.NamedSharding(mesh, jax.P("rows"))
    ws, x = shapes(rows=2048)
    both = [jax.ShapeDtypeStruct((2, *x.shape), x.dtype, sharding=each) for each in (None, sharding)]
    whole, parted = (planner((ws, each))._hosting for each in both)
    stored = lambda hosting: {trip.stored.aval.ndim for trip in hosting.trips}
    assert (stored(whole), stored(parted)) == ({2}, {3})


def test_the_fastest_with_and_without_the_host_are_both_compiled(moved, monkeypatch):
    planning, hosted = moved
    alone = planning.own.fit(hosted.peak_bytes)
    monkeypatch.setattr(planning, "_with_host", lambda peak_bytes: [hosted])
    assert list(planning.near_misses(alone, alone.cost, hosted.peak_bytes)) == [hosted]
    assert list(planning.near_misses(hosted, hosted.cost, hosted.peak_bytes)) == [alone]
    assert list(planning.near_misses(alone, alone.cost, hosted.peak_bytes - 1)) == [], "the other one does not fit"


def test_no_more_waits_on_the_host_than_makes_up_for_what_is_too_much():
    planning = planner()
    assert len(planning._waiting_at_peak(planning.plain, planning.plain, set(), 1)) == 1
    assert len(planning._waiting_at_peak(planning.plain, planning.plain, set(), VALUE_BYTES + 1)) == 2


def test_a_host_budget_bounds_what_waits_there():
    planning = planner(host_budget_bytes=3 * VALUE_BYTES)
    assert 0 < transfers_of(planning._moved(planning.plain, 0), H200).out_bytes <= 3 * VALUE_BYTES


def test_below_what_recomputation_reaches_the_host_helps():
    planning = planner()
    least = min(planning.least(), key=by_peak)
    assert transfers_of(least, H200).out_bytes
    assert least.peak_bytes <= min(outcome.peak_bytes for outcome in planning.own.least()) - VALUE_BYTES
    assert planning.fit(least.peak_bytes).peak_bytes <= least.peak_bytes


def test_a_plan_says_what_waits_on_the_host():
    least = min(planner().least(), key=by_peak)
    args = shapes()
    plan = jaxremat.plan(layered, *args, budget=least.peak_bytes, target="h200", verify="replay", allow=("offload",))
    away = [value for value in plan.saved if value.form == "host"]
    assert away and all(value.size_bytes == 0 and value.host_bytes == VALUE_BYTES for value in away)
    assert ", on the host" in str(plan)


def test_where_copies_cannot_be_held_none_is_made():
    planning = planner(target=resolve_target("tpu-v5e"))
    assert all(transfers_of(each, H200).out_bytes == 0 for each in (planning.fit(1), *planning.least()))


def skipping(ws, x):
    """A layer whose result meets that of shorter ones again, as in a U-Net."""
    skip = jnp.tanh(x @ ws[0])
    y = jnp.tanh(skip[::2] @ ws[1])
    y = jnp.repeat(jnp.tanh(y @ ws[2])[:, None], 2, 1).reshape(skip.shape)
    return jnp.mean(jnp.tanh(jnp.concatenate([y, skip], -1) @ ws[3]) ** 2)


@pytest.fixture(scope="module")
def with_skip():
    """Its schedule with everything on the host, and the program that this is of."""
    width, rows = 1024, 16384
    sides = [(width, width)] * 3 + [(2 * width, width)]
    args = [jax.ShapeDtypeStruct(side, jnp.float32) for side in sides], jax.ShapeDtypeStruct((rows, width), jnp.float32)
    primal = read_primal(skipping, args, 0, False)
    planning = planner_for(primal, H200, Auto(), "schedule", 0, {"offload"}, None)
    return primal, planning._moved_at(planning.plain, 0, None)


def test_a_part_that_waits_is_cut_when_the_others_are_read(with_skip):
    """Beside what was concatenated there is one part at a time: the first is summed, then the second is cut."""
    outcome = with_skip[1]
    eqns, steps = outcome.problem.joint.eqns, outcome.program.steps.tolist()
    cuts = [step for step, node in enumerate(steps) if eqns[node].primitive.name == "split"]
    assert len(cuts) == 2 and steps[cuts[0]] == steps[cuts[1]]
    part, _ = eqns[steps[cuts[0]]].outvars
    readers = [step for step, node in enumerate(steps) if part in jaxprs.vars_of(eqns[node].invars)]
    assert readers and all(cuts[0] < step < cuts[1] for step in readers)
    assert {cuts[1], cuts[1] + 1} <= set(outcome.program.barriers)


def test_gradients_that_pass_barriers_are_laid_out_as_results(with_skip):
    primal, outcome = with_skip
    emitted = outcome.form.emitted(primal, H200)
    shapes = primal.inputs
    traced = jax.make_jaxpr(jax.grad(lambda ws, x: emitted(*ws, x)[0]))(shapes[:-1], shapes[-1])
    settled = [eqn for eqn in traced.jaxpr.eqns if eqn.primitive.name == "layout_constraint"]
    assert [eqn.outvars[0].aval.shape for eqn in settled] == [shape.shape for shape in shapes[-2:0:-1]]


def test_copies_are_tied_to_what_is_computed(with_skip):
    """A barrier that copies alone pass through holds nothing."""
    _, outcome = with_skip
    joint = outcome.problem.joint
    script = write_script(joint, outcome.program)
    passed = [segment.through for segment in (*script.forward, *script.backward) if segment.through]
    assert passed and not any(all(map(jaxprs.is_on_host, through)) for through in passed)


def test_copies_that_the_compiler_undid_are_told(moved):
    _, outcome = moved
    joint, planned = outcome.problem.joint, transfers_of(outcome, H200).out_bytes
    told = lambda there: copies_undone(joint, outcome.program, SimpleNamespace(host_bytes=there, target="h200"))
    assert bytes_on_host(joint, outcome.program) == planned and told(planned) == ()
    (warning,) = told(planned - VALUE_BYTES)
    assert f"{planned // 2**20}.0 MiB were to wait" in warning
    assert f"{(planned - VALUE_BYTES) // 2**20}.0 MiB do" in warning


def test_the_peak_is_found_where_a_forward_step_is_moved_behind_the_first_of_the_backward():
    problem = SimpleNamespace(graph=SimpleNamespace(num_nodes=3))
    outcome = SimpleNamespace(problem=problem, program=SimpleNamespace(steps=np.array([0, 1, 2, 0])))
    for schedule, peak_step, expected in (([0, 2, 1, 0], 2, 1), ([0, 1, 2, 0], 3, 3), ([0, 1, 0, 2], 2, 3)):
        moved = SimpleNamespace(
            problem=problem, timeline=SimpleNamespace(schedule=np.array(schedule), peak_step=peak_step)
        )
        assert planner()._peak_step(outcome, moved) == expected
