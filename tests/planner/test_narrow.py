"""Values that wait rounded: with permission only, at half or a quarter of the bytes; gradients say what it costs."""

import functools
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxremat
from jaxremat.backends.devices import resolve_target
from jaxremat.planner.choose import planner_for
from jaxremat.planner.schedules import SchedulePlanner
from jaxremat.planner.timed import TimedPlanner
from jaxremat.planner.timed_bytes import TimedBytesPlanner
from jaxremat.planner.timed_loops import TimedLoopPlanner
from jaxremat.planning.gradient_check import _default_rtol
from jaxremat.planning.plan import UNMEASURED
from jaxremat.solvers.auto import Auto
from jaxremat.trace import jaxpr as jaxprs
from jaxremat.trace.primal import apply_flat, read_primal
from jaxremat.trace.round_trips import IN_BYTES, LOSSLESS, NARROW, STORAGES, Source

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


def wide():
    """Layers so wide that to compute one again takes longer than to round it."""
    return [jax.ShapeDtypeStruct((4096, 4096), jnp.float32)] * LAYERS, jax.ShapeDtypeStruct((16384, 4096), jnp.float32)


def rounded(plan):
    return [value for value in plan.saved if value.form == "bfloat16"]


@pytest.mark.parametrize("allow", [(), ("narrow",)])
def test_nothing_is_rounded_without_permission(allow):
    shapes = wide()
    plan = jaxremat.plan(unrolled, *shapes, budget=0.75, target="h200", verify="replay", allow=allow)
    assert bool(rounded(plan)) == bool(allow)
    assert any("rounded to bfloat16 (off by up to 0.002)" in warning for warning in plan.warnings) == bool(allow)
    if allow:
        assert ", as bfloat16" in str(plan)
        exact = jaxremat.plan(unrolled, *shapes, budget=0.75, target="h200", verify="replay")
        assert plan.overhead < exact.overhead, "half the bytes leave more of the budget"


@pytest.mark.parametrize("scan", [False, True], ids=["unrolled", "scanned"])
def test_gradients_are_off_by_the_rounding_and_no_more(scan):
    """On a GPU's planner, run on the CPU: the rounding is the same."""
    fun, (ws, x) = (scanned, arrays(True)) if scan else (unrolled, arrays(False))
    planner, device = rounding_planner(fun, (ws, x)), resolve_target("h200")
    primal = planner.plain.problem.primal
    outcome = planner.fit(int(0.75 * planner.plain.replayed_bytes))
    gradient = jax.jit(jax.grad(lambda *args: apply_flat(primal, outcome.form.emitted(primal, device), args)))
    for got, own in zip(jax.tree.leaves(gradient(ws, x)), jax.tree.leaves(jax.jit(jax.grad(fun))(ws, x))):
        error = float(jnp.abs(got - own).max() / jnp.abs(own).max())
        assert error < LAYERS * 2**-8


def test_where_xla_would_undo_it_nothing_is_rounded():
    plan = jaxremat.plan(unrolled, *arrays(False), budget=0.7, verify="replay", allow=("narrow",))
    assert not rounded(plan)


def rounding_planner(fun, args):
    """Of a program in which everything may wait as bfloat16."""
    primal, device = read_primal(fun, args, 0, False), resolve_target("h200")
    planner_type = TimedLoopPlanner if fun is scanned else TimedPlanner
    return planner_type(primal, device, (*LOSSLESS, *NARROW[0]))


def test_half_precision_stays_as_it_is():
    args = jax.tree.map(lambda x: x.astype(jnp.bfloat16), arrays(False))
    assert not rounding_planner(unrolled, args).plain.problem.joint.round_trips


@pytest.mark.parametrize("form", IN_BYTES)
def test_a_byte_per_number_is_off_by_what_its_form_says(form):
    storage, value = STORAGES[form], Source(jax.ShapeDtypeStruct((64, 256), jnp.float32), "add")
    x = jax.random.normal(jax.random.key(0), value.shape.shape).at[3].set(0.0).at[9].set(1e-38)
    x = x.at[5, 7].set(jnp.nan).at[6, 1].set(jnp.inf)
    waiting = jax.jit(lambda x: storage.store(x, value))(x)
    assert [a.dtype.itemsize for a in waiting] == [1, 4] and waiting[1].shape == (64, 1)
    back = storage.restore(waiting, value)
    assert (back[3] == 0).all(), "a row of zeros has no largest number"
    assert jnp.isnan(back[5:7]).all(), "a row that is not finite is not hidden"
    finite = np.delete(np.arange(64), [5, 6])
    largest = jnp.abs(x).max(-1, keepdims=True)
    assert (jnp.abs(back - x) <= storage.rounding * largest)[finite].all()


def test_int8_is_right_on_average_and_floats_keep_small_numbers():
    x = jnp.full((64, 256), 0.3).at[:, 0].set(40.0)  # 0.3 is less than a step of 40 / 127
    value, storages = Source(jax.ShapeDtypeStruct(x.shape, x.dtype), "add"), map(STORAGES.__getitem__, IN_BYTES)
    back = {each.form: each.restore(each.store(x, value), value)[:, 1:] for each in storages}
    assert set(np.unique(np.round(back["int8"] * 127 / 40))) == {0.0, 1.0}
    assert abs(back["int8"].mean() - 0.3) < 0.01
    np.testing.assert_allclose(back["float8_e4m3"], 0.3, rtol=2**-4)


def test_in_bytes_gradients_are_near_and_bytes_are_saved():
    """Compiled and run here."""
    args, device = arrays(True), resolve_target("cpu")
    primal = read_primal(scanned, args, 0, False)
    planner = SchedulePlanner(primal, device, (*LOSSLESS, *IN_BYTES))
    outcome = planner.fit(int(0.9 * planner.plain.replayed_bytes))
    assert any(jaxprs.dtype_of(v) == jnp.int8 for eqn in outcome.problem.joint.eqns for v in eqn.outvars)
    emitted = outcome.form.emitted(outcome.problem.primal, device)
    gradient = jax.jit(jax.grad(lambda *args: apply_flat(primal, emitted, args)))
    plain = jax.jit(jax.grad(scanned))
    for got, own in zip(jax.tree.leaves(gradient(*args)), jax.tree.leaves(plain(*args)), strict=True):
        assert 0 < float(jnp.abs(got - own).max() / jnp.abs(own).max()) < 0.02
    ours, theirs = (f.lower(*args).compile().memory_analysis().temp_size_in_bytes for f in (gradient, plain))
    assert ours <= 0.9 * theirs


def emitted_on(primal, emitted, *args):
    return apply_flat(primal, emitted, args)


def test_outside_of_loops_only_what_is_packed_is_off():
    """Planned for a GPU, run here: the same schedule with nothing packed gives what the program gives."""
    args, device = arrays(False, rows=2048, width=512), resolve_target("h200")
    primal = read_primal(unrolled, args, 0, False)
    planner = TimedBytesPlanner(primal, device)
    packed = planner._moved_at(planner.plain, 0, None)
    exact = planner._hosted(planner.plain, set(), None)
    plain = jax.jit(jax.grad(unrolled))(*args)
    assert packed.peak_bytes < 0.8 * exact.peak_bytes
    for outcome, most in ((packed, 0.02), (exact, 1e-5)):
        gradient = jax.grad(functools.partial(emitted_on, primal, outcome.form.emitted(primal, device)))
        for got, own in zip(jax.tree.leaves(jax.jit(gradient)(*args)), jax.tree.leaves(plain), strict=True):
            assert float(jnp.abs(got - own).max() / jnp.abs(own).max()) < most


def test_as_few_bits_as_pay_and_no_fewer():
    def forms(fun, args, share):
        primal = read_primal(fun, args, 0, False)
        planner = planner_for(primal, resolve_target("h200"), Auto(), "schedule", 0, {"narrow"})
        return set(planner.fit(int(share * planner.plain.replayed_bytes)).form.storages) - {*LOSSLESS}

    ws, x = wide()
    assert forms(unrolled, (ws, x), 0.9) == set(), "kept as it is, it takes no more time"
    assert forms(unrolled, (ws, x), 0.75) == set(NARROW[0]), "half the bytes are enough"
    assert forms(unrolled, (ws, x), 0.48) == set(IN_BYTES), "with half the bytes most products would run again"
    stacked = jax.ShapeDtypeStruct((LAYERS, *ws[0].shape), jnp.float32)
    assert forms(scanned, (stacked, x), 0.77) == set(IN_BYTES), "with half the bytes products would run again"


def test_a_check_of_gradients_allows_for_the_forms_that_were_used():
    joint = rounding_planner(unrolled, arrays(False)).plain.problem.joint
    decided = lambda *forms: SimpleNamespace(form=SimpleNamespace(storages=forms))
    allowed = [_default_rtol(joint, decided(*forms)) for forms in ((), ("int8",), ("float8_e4m3", "int8"))]
    assert allowed[0] < allowed[1] < allowed[2] < 0.5


def test_a_plan_tells_by_how_much_rounding_changes_gradients_once_that_is_measured(tmp_path):
    """Planned for a GPU, measured here: the rounding is the same."""
    args = arrays(False, rows=2048, width=1024)
    plan = jaxremat.plan(unrolled, *args, budget=0.6, target="h200", verify="replay", allow=("narrow",))
    assert rounded(plan) and UNMEASURED in plan.warnings
    measured = plan.measured(*args)
    assert UNMEASURED not in measured.warnings and len(measured.warnings) == len(plan.warnings)
    found = re.search(r"on cpu, on one set of arguments: 9 results .* agree within (\S+) ", measured.warnings[-1])
    assert found and 1e-4 < float(found[1]) < 0.02
    assert found[1] in str(measured) and found[1] in str(measured.summary()["warnings"])
    measured.save(tmp_path / "plan.json")
    assert jaxremat.load_plan(tmp_path / "plan.json", unrolled, *args).warnings == measured.warnings


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
    trips = rounding_planner(unrolled, arrays(False)).plain.problem.joint.round_trips
    assert trips and all(2 * jaxprs.size_bytes(trip.stored) == jaxprs.size_bytes(trip.source) for trip in trips)
