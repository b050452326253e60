"""Values in the host's memory, as compiled for devices that are not here."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import jaxremat
from jaxremat.backends.devices import resolve_target
from jaxremat.planner.timed_transfers import TimedTransferPlanner
from jaxremat.planner.transfers import TransferPlanner, transfers_of
from jaxremat.planning.compilation import compile_program
from jaxremat.trace.joint import read_primal

LAYERS, WIDTH, ROWS = 10, 1024, 16384
STACK_BYTES = LAYERS * ROWS * WIDTH * 4  # one value of every iteration: 640 MiB


def layered(ws, x):
    x = lax.scan(lambda x, w: (x + jnp.tanh(x @ w), None), x, ws)[0]
    return jnp.mean(x**2)


@pytest.mark.aot
def test_a_stack_lies_on_the_host_and_not_on_the_device():
    """As written, the loop stacks two values of 640 MiB; at four fifths of its bytes, half of one waits on the host."""
    shapes = jax.ShapeDtypeStruct((LAYERS, WIDTH, WIDTH), jnp.float32), jax.ShapeDtypeStruct((ROWS, WIDTH), jnp.float32)
    device, primal = resolve_target("h200"), read_primal(layered, shapes, 0, False)
    planner = TransferPlanner(primal, device, None)
    outcome = planner._at_share(1e-3).fit(int(0.8 * planner.plain.replayed_bytes))
    report = compile_program(primal, outcome.form.emitted(primal, device), False, device).report
    plain = compile_program(primal, primal.as_written, False, device).report
    assert plain.host_bytes == 0 and report.host_bytes >= STACK_BYTES // 2
    assert report.peak_bytes < 0.85 * plain.peak_bytes


@pytest.mark.aot
def test_unrolled_copies_take_effect_and_are_predicted():
    """With everything on the host that may go there: below the least that recomputation alone reaches."""

    def unrolled(ws, x):
        for w in ws:
            x = x + jnp.tanh(x @ w)
        return jnp.mean(x**2)

    shapes = (
        [jax.ShapeDtypeStruct((WIDTH, WIDTH), jnp.float32)] * LAYERS,
        jax.ShapeDtypeStruct((ROWS, WIDTH), jnp.float32),
    )
    device, primal = resolve_target("h200"), read_primal(unrolled, shapes, 0, False)
    planner = TimedTransferPlanner(primal, device, None)
    outcome = planner.least()[0]
    report = compile_program(primal, outcome.form.emitted(primal, device), False, device).report
    assert report.host_bytes == transfers_of(outcome, device).out_bytes > 0
    assert report.peak_bytes <= 1.05 * outcome.peak_bytes
    assert report.peak_bytes < 0.9 * min(each.peak_bytes for each in planner.own.least())
    assert report.seconds is not None and abs(report.seconds / outcome.cost - 1) < 0.1


@pytest.mark.aot
def test_what_a_scan_of_a_step_stacks_lies_on_the_host():
    """Layers so wide that a copy hides behind a product: one of two stacks of 4 GiB waits on the host."""
    layers, width = 4, 16384

    def step(ws, x):
        def loss(ws):
            return jnp.mean(lax.scan(lambda x, w: (x + jnp.tanh(x @ w), None), x, ws)[0] ** 2)

        value, grads = jax.value_and_grad(loss)(ws)
        return ws - 0.1 * grads, value

    ws, x = (jax.ShapeDtypeStruct(dims, jnp.float32) for dims in ((layers, width, width), (width, width)))
    planned = jaxremat.jit(step, budget=0.85, donate_argnums=0, target="h200", allow="offload")
    plan = planned.plan(ws, x)
    assert plan.compiled.host_bytes >= layers * width * width * 4
    assert plan.compiled.peak_bytes <= plan.budget_bytes
