"""Random projections on a GPU, as compiled: they wait, and nothing of full size comes back."""

import jax
import jax.numpy as jnp
import pytest

from jaxremat.backends.devices import resolve_target
from jaxremat.planner.timed_bytes import TimedBytesPlanner
from jaxremat.planning.executable import compile_program
from jaxremat.trace.primal import read_primal
from jaxremat.trace.round_trips import PROJECTED


def rectified(ws, x):
    for w in ws:
        x = jax.nn.relu(x @ w)
    return jnp.mean(x**2)


@pytest.mark.aot
def test_projections_wait_outside_of_loops_and_take_no_time():
    """Of six values of 64 MiB four wait as 16 MiB or, where only masks are read, as bits; a quarter of the arithmetic of
    the products that read them is left."""
    width, rows, layers = 2048, 8192, 6
    shapes = (
        [jax.ShapeDtypeStruct((width, width), jnp.float32)] * layers,
        jax.ShapeDtypeStruct((rows, width), jnp.float32),
    )
    device, primal = resolve_target("h200"), read_primal(rectified, shapes, 0, False)
    planner = TimedBytesPlanner(primal, device, (PROJECTED.form,))
    outcome = planner._moved_at(planner.plain, 0, None)
    report, plain = (
        compile_program(primal, fun, False, device).report
        for fun in (outcome.form.emitted(primal, device), primal.as_written)
    )
    print(
        report.temp_bytes / 2**20, plain.temp_bytes / 2**20, report.seconds / plain.seconds, report.flops / plain.flops
    )
    print(report.peak_bytes / outcome.peak_bytes, outcome.cost / planner.plain.cost)
    assert report.temp_bytes <= 0.6 * plain.temp_bytes
    assert report.peak_bytes == pytest.approx(outcome.peak_bytes, rel=0.05)
    assert report.flops < plain.flops and report.seconds < plain.seconds
