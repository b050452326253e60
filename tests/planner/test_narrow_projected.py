"""Values that wait as random projections: with permission only, where it pays, and gradients of weights say so."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxremat
from jaxremat.backends.devices import resolve_target
from jaxremat.planner.choose import planner_for
from jaxremat.planner.schedules import SchedulePlanner
from jaxremat.planner.timed_bytes import TimedBytesPlanner
from jaxremat.planning.plan import UNMEASURED
from jaxremat.solvers.auto import Auto
from jaxremat.trace.primal import apply_flat, read_primal
from jaxremat.trace.projections import DEVIATION
from jaxremat.trace.round_trips import IN_BYTES, LOSSLESS, NARROW, PROJECTED, permitted

LAYERS = 6
PROJECT = (PROJECTED.form,)


def unrolled(ws, x):
    for w in ws:
        x = x + jnp.tanh(x @ w)
    return jnp.mean(x**2)


def scanned(ws, x):
    layer = lambda x, w: (jax.nn.relu(jax.nn.relu(x @ w[0]) @ w[1]), None)
    return jnp.mean(lax.scan(layer, x, ws)[0] ** 2)


def shapes(rows, width, scan=False):
    shape = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    ws = (shape((LAYERS, width, width)),) * 2 if scan else [shape((width, width))] * LAYERS
    return ws, shape((rows, width))


def arrays(rows, width, scan=False):
    """Weights that keep the norm of what passes."""
    leaves, tree = jax.tree.flatten(shapes(rows, width, scan))
    keys = jax.random.split(jax.random.key(0), len(leaves))
    made = [jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves)]
    return jax.tree.unflatten(tree, [a * (2 / width) ** 0.5 for a in made[:-1]] + made[-1:])


def relative(a, b):
    return float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b))


def gradient_of(primal, outcome, device):
    emitted = outcome.form.emitted(primal, device)
    return jax.jit(jax.grad(lambda *args: apply_flat(primal, emitted, args), (0, 1)))


def test_permissions_name_sets_of_forms_the_nearest_to_exact_first():
    assert permitted(set()) == permitted({"offload", "chunk"}) == ()
    assert permitted({"narrow"}) == NARROW
    assert permitted({"project"}) == (PROJECT,)
    assert permitted({"project", "narrow"}) == (*NARROW, PROJECT, (*PROJECT, *IN_BYTES))


@pytest.mark.parametrize("allow", [(), ("narrow",), ("project",)])
def test_nothing_is_projected_without_permission(allow):
    plan = jaxremat.plan(unrolled, *shapes(16384, 2048), budget=0.85, target="h200", verify="replay", allow=allow)
    waiting = [value for value in plan.saved if value.form == "projected"]
    assert bool(waiting) == (allow == ("project",))
    told = [warning for warning in plan.warnings if "right on average" in warning]
    assert bool(told) == bool(waiting)
    if waiting:
        assert "off by 2 times themselves in each step" in told[0] and ", as projected" in str(plan)
        exact = jaxremat.plan(unrolled, *shapes(16384, 2048), budget=0.85, target="h200", verify="replay")
        assert plan.overhead < exact.overhead - 0.01
        assert "projected" in plan.explain()


def test_what_is_exact_or_rounded_comes_first_where_it_takes_no_more_time():
    primal = read_primal(unrolled, shapes(16384, 2048), 0, False)

    def forms(allow, share):
        planner = planner_for(primal, resolve_target("h200"), Auto(), "schedule", 0, frozenset(allow))
        return set(planner.fit(int(share * planner.plain.replayed_bytes)).form.storages) - {*LOSSLESS}

    assert forms(["project"], 1.0) == set()
    assert forms(["project"], 0.85) == {*PROJECT}
    rounded = forms(["narrow", "project"], 0.55)
    assert rounded and rounded.isdisjoint(PROJECT), "what is projected takes as many bytes and more time"


def test_outside_of_loops_only_gradients_of_weights_are_off():
    """Planned for a GPU, run here."""
    args, device = arrays(2048, 512), resolve_target("h200")
    primal = read_primal(unrolled, args, (0, 1), False)
    planner = TimedBytesPlanner(primal, device, PROJECT)
    packed = planner._moved_at(planner.plain, 0, None)
    assert packed.peak_bytes < 0.8 * planner.plain.peak_bytes
    (ws, x), wanted = gradient_of(primal, packed, device)(*args), jax.jit(jax.grad(unrolled, (0, 1)))(*args)
    assert relative(x, wanted[1]) < 1e-6
    errors = [relative(a, b) for a, b in zip(ws, wanted[0], strict=True)]
    estimated = [error for error in errors if error > 1e-6]
    assert len(estimated) >= LAYERS - 2
    assert all(error == pytest.approx(DEVIATION, rel=0.1) for error in estimated)


def test_what_runs_again_reads_values_and_not_projections():
    """A value that recomputation in the backward reads may not be projected, whatever that would free."""
    args, device = shapes(16384, 1024), resolve_target("h200")
    planner = TimedBytesPlanner(read_primal(unrolled, args, 0, False), device, PROJECT)
    for outcome in (*planner.own.least(), *planner.own.made):
        joint, program = outcome.problem.joint, outcome.program
        late = program.steps[program.backward_start :]
        read = {v for node in late[~joint.backward[late]].tolist() for v in joint.values_read[node]}
        packed = planner._moved_at(outcome, 0, None)
        trips = planner._hosting.problem.joint.round_trips
        value_of = {var: value for value, var in enumerate(planner._hosting.problem.joint.values)}
        own = {int(there): here for here, there in enumerate(planner._hosting.value)}
        saved = set(packed.program.saved.tolist()) if packed is not outcome else set()
        taken = {own[value_of[trip.source]] for trip in trips if value_of[trip.stored] in saved}
        assert taken.isdisjoint(read)


def test_in_loops_compiled_bytes_fall_and_only_weights_are_off():
    """Compiled and run here: a quarter of what a layer of [2048, 256] stacks waits in the place of all of it."""
    args, device = arrays(2048, 256, scan=True), resolve_target("cpu")
    primal = read_primal(scanned, args, (0, 1), False)
    planner, exact = (SchedulePlanner(primal, device, (*LOSSLESS, *forms)) for forms in (PROJECT, ()))
    aim = int(0.75 * planner.plain.replayed_bytes)
    outcome = planner.fit(aim)
    gradient = gradient_of(primal, outcome, device)
    plain = jax.jit(jax.grad(scanned, (0, 1)))
    (ws, x), wanted = gradient(*args), plain(*args)
    assert relative(x, wanted[1]) < 1e-5
    errors = [relative(a, b) for a, b in zip(ws, wanted[0], strict=True)]
    assert max(errors) == pytest.approx(DEVIATION, rel=0.1)
    assert outcome.cost < exact.fit(aim).cost
    temps = [f.lower(*args).compile().memory_analysis().temp_size_in_bytes for f in (gradient, plain)]
    assert temps[0] <= 0.75 * temps[1]


def test_gradients_average_to_the_exact_one_over_steps():
    """What a trainer sees: a new batch each step, and with it new projections."""
    (ws, x), device = arrays(512, 64, scan=True), resolve_target("cpu")
    primal = read_primal(scanned, (ws, x), (0, 1), False)
    planner = SchedulePlanner(primal, device, (*LOSSLESS, *PROJECT))
    outcome = planner.fit(int(0.75 * planner.plain.replayed_bytes))
    gradient = gradient_of(primal, outcome, device)
    noise = 1e-5 * jax.random.normal(jax.random.key(7), (256, *x.shape))
    given = jax.lax.map(lambda extra: gradient(ws, x + extra)[0][1], noise)
    wanted = jax.grad(scanned)(ws, x)[1]
    for number in (1, 16, 256):
        assert relative(given[:number].mean(0), wanted) == pytest.approx(DEVIATION / number**0.5, rel=0.25)


def test_a_plan_tells_how_far_estimates_are_and_its_file_keeps_the_form(tmp_path):
    args = arrays(8192, 1024)
    plan = jaxremat.plan(unrolled, *args, budget=0.8, target="h200", verify="replay", allow=("project",))
    forms = [value.form for value in plan.saved]
    assert "projected" in forms and UNMEASURED in plan.warnings
    measured = plan.measured(*args)
    found = re.search(r"agree within (\S+) ", measured.warnings[-1])
    assert found and 0.3 < float(found[1]) < 6 * DEVIATION
    measured.save(tmp_path / "plan.json")
    loaded = jaxremat.load_plan(tmp_path / "plan.json", unrolled, *args)
    assert [value.form for value in loaded.saved] == forms and loaded.warnings == measured.warnings
    for got, own in zip(*(jax.tree.leaves(jax.grad(p.apply(unrolled))(*args)) for p in (loaded, plan))):
        np.testing.assert_array_equal(got, own)


@pytest.mark.parametrize("wrong", [{"emit": "names"}, {"solver": "fastsa"}])
def test_other_forms_and_solvers_say_that_they_cannot(wrong):
    with pytest.raises(jaxremat.ArgumentError, match="allow='project' takes"):
        jaxremat.plan(unrolled, *shapes(128, 64), budget=0.7, verify="replay", allow=("project",), **wrong)


def test_a_word_that_is_nearly_the_permission_is_met_with_it():
    with pytest.raises(jaxremat.ArgumentError, match=r"Did you mean 'project'"):
        jaxremat.plan(unrolled, *shapes(128, 64), budget=0.7, allow=("projekt",))
