"""Where memory that is new to a program takes time: what a plan says of its time, and which plan is the fastest."""

import itertools
import resource

import jax
import jax.numpy as jnp
import pytest

import jaxremat
from jaxremat.backends.devices import DEVICES
from jaxremat.backends.measured import keep_rates

MIB = 2**20
RATE = 5e-10  # seconds per byte: 2 GB/s


def layers(number, rows):
    """Contractions of 64 columns, and after each of them four element-wise values that are cheap to compute again."""

    def loss(weights, x):
        for w in weights:
            x = jnp.sin(jnp.cos(jnp.sin(jnp.cos(x @ w))))
        return jnp.mean(x)

    return loss, ([jax.ShapeDtypeStruct((64, 64), jnp.float32)] * number, jax.ShapeDtypeStruct((rows, 64), jnp.float32))


def scanned(number, rows):
    def loss(weights, x):
        return jnp.mean(jax.lax.scan(lambda x, w: (jnp.sin(jnp.cos(jnp.sin(jnp.cos(x @ w)))), None), x, weights)[0])

    shapes = (number, 64, 64), (rows, 64)
    return loss, tuple(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)


@pytest.fixture(autouse=True)
def measured(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    keep_rates("cpu", {"first_touch_seconds_per_byte": RATE})


def plans(loss, shapes, budgets, **options):
    return [jaxremat.plan(loss, *shapes, budget=budget, **options) for budget in budgets]


@pytest.mark.parametrize(("make", "budgets"), [(layers, (0.9, 0.8, 0.7)), (scanned, (0.9, 0.7, 0.5, 0.35))])
def test_a_higher_budget_never_announces_more_time(make, budgets):
    loss, shapes = make(6, 2**14)
    overheads = [plan.overhead for plan in plans(loss, shapes, budgets, verify="replay")]
    assert all(more <= less + 0.01 for more, less in itertools.pairwise(overheads)), overheads
    assert overheads[0] < -0.1, "what takes less memory is faster than the program as written"


def test_what_fits_is_left_alone():
    loss, shapes = scanned(6, 2**14)
    (plan,) = plans(loss, shapes, (1.0,), verify="replay")
    assert plan.decision.emit == "plain" and plan.overhead == 0


def test_budgets_above_the_peak_of_the_fastest_plan_have_one_plan():
    loss, shapes = scanned(6, 2**14)
    high, low = plans(loss, shapes, (0.9, 0.7), verify="replay")
    assert high.peak_bytes == low.peak_bytes < 0.6 * high.baseline_peak_bytes
    assert "faster than as written" in str(high)


def test_announced_times_go_by_the_temporaries_that_were_compiled():
    loss, shapes = scanned(6, 2**14)
    plain, plan = plans(loss, shapes, (1.0, 0.9))
    assert plan.compiled.temp_bytes > 32 * MIB, "else nothing is new"
    seconds = [each.outcome.cost + RATE * each.compiled.temp_bytes for each in (plan, plain)]
    assert plan.overhead == pytest.approx(seconds[0] / seconds[1] - 1)


def test_what_the_allocator_hands_out_again_takes_no_time():
    loss, shapes = layers(6, 2**14)
    plain, plan = plans(loss, shapes, (1.0, 0.9), verify="replay")
    assert plan.peak_bytes - plan.problem.graph.resident_bytes <= 32 * MIB
    new_bytes = plain.peak_bytes - plain.problem.graph.resident_bytes
    assert plan.overhead == pytest.approx(plan.outcome.cost / (plain.outcome.cost + RATE * new_bytes) - 1)


def test_nothing_is_gained_where_memory_is_kept_between_runs():
    assert all(device.first_touch_seconds(2**40) == 0 for device in DEVICES.values() if device.platform != "cpu")
    keep_rates("cpu", {"first_touch_seconds_per_byte": 0.0})
    high, low = plans(*scanned(6, 2**14), (0.9, 0.5), verify="replay")
    assert 0 < high.overhead < low.overhead and high.peak_bytes > 1.2 * low.peak_bytes


def test_a_curve_shows_plans_that_are_faster_than_the_program_as_written():
    loss, shapes = scanned(6, 2**14)
    front = jaxremat.pareto(loss, *shapes, budgets=(0.7, 0.3))
    assert [point.overhead < 0 for point in front.points] == [True] * len(front.points)
    assert "-20 %" in front._repr_html_(), "the axis of time begins below zero"


@pytest.mark.parametrize(("mib", "is_new"), [(16, False), (256, True)])
def test_large_temporaries_are_new_memory_at_every_run(mib, is_new):
    """As glibc's malloc does it: what was larger than 32 MiB, and given back, is mapped anew."""
    x = jnp.zeros(mib * MIB // 4, jnp.float32)
    run = jax.jit(lambda x: jnp.sum(jax.lax.optimization_barrier(x + 1)))
    assert run.lower(x).compile().memory_analysis().temp_size_in_bytes >= mib * MIB

    def faulted_bytes():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        run(x).block_until_ready()
        return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * resource.getpagesize()

    least = min(faulted_bytes() for _ in range(8 if is_new else 32))  # every thread that runs it has memory of its own
    assert (least > 0.9 * mib * MIB) == is_new


@pytest.mark.parametrize("emit", ["segments", "names"])
def test_checkpoints_announce_no_more_time_at_a_higher_budget_either(emit):
    loss, shapes = layers(6, 2**14)
    high, low = plans(loss, shapes, (0.95, 0.8), verify="replay", emit=emit)
    assert high.overhead <= low.overhead + 0.01 < 0
