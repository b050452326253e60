"""Random projections on a GPU, as compiled: they wait, and nothing of full size comes back."""

import jax
import jax.numpy as jnp
import pytest

from jaxremat.backends.devices import resolve_target
from jaxremat.planner.timed_bytes import TimedBytesPlanner
from jaxremat.planning.executable import compile_program
from jaxremat.trace.primal import read_primal
from jaxremat.trace.round_trips import PROJECTED


def unrolled(ws, x):
    for w in ws:
        x = x + jnp.tanh(x @ w)
    return jnp.mean(x**2)


@pytest.mark.aot
def test_projections_wait_outside_of_loops():
    """Each layer leaves two values of 64 MiB: the one that only a weight's gradient reads waits in a quarter."""
    width, rows, layers = 2048, 8192, 6
    shapes = (
        [jax.ShapeDtypeStruct((width, width), jnp.float32)] * layers,
        jax.ShapeDtypeStruct((rows, width), jnp.float32),
    )
    device, primal = resolve_target("h200"), read_primal(unrolled, shapes, 0, False)
    planner = TimedBytesPlanner(primal, device, (PROJECTED.form,))
    outcome = planner._moved_at(planner.plain, 0, None)
    report, plain = (
        compile_program(primal, fun, False, device).report
        for fun in (outcome.form.emitted(primal, device), primal.as_written)
    )
    assert plain.temp_bytes - report.temp_bytes >= 0.9 * (layers - 2) * 48 * 2**20
    assert report.peak_bytes == pytest.approx(outcome.peak_bytes, rel=0.05)
    assert report.flops < plain.flops and report.seconds <= 1.1 * plain.seconds
