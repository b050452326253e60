"""What a schedule of a step will occupy: predicted for what is emitted, and told step by step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxremat.backends.devices import resolve_target
from jaxremat.graph.replay import replay
from jaxremat.step.decision import ProgramDecision
from jaxremat.step.outcome import StepOutcome, pose_program
from jaxremat.step.program import Aliased, trace_step
from jaxremat.step.scheduling import StepSearch, in_order

CPU = resolve_target("cpu")
LAYERS = 6


def step(ws, x):
    def loss(ws):
        h = x
        for w in ws:
            h = h + jnp.tanh(h @ w)
        return jnp.mean(h**2)

    return [w - 0.1 * g for w, g in zip(ws, jax.grad(loss)(ws))]


def posed(rows, **options):
    args = [jax.ShapeDtypeStruct((32, 32), jnp.float32)] * LAYERS + [jax.ShapeDtypeStruct((rows, 32), jnp.float32)]
    flat = trace_step(lambda *leaves: step(leaves[:-1], leaves[-1]), args, [""] * 7, [False] * 7, [None] * 7)
    return pose_program(flat.jaxpr, CPU, **options)


def outcomes(program):
    search = StepSearch(program.graph, program.run_seconds())
    return [StepOutcome(program, each, ProgramDecision()) for each in (in_order(program.graph), search.smallest)]


@pytest.fixture(scope="module")
def large():
    return outcomes(posed(8192))


def test_small_programs_are_replayed():
    for outcome in outcomes(posed(8)):
        assert outcome.timeline.peak_bytes == replay(outcome.posed.graph, outcome.schedule.steps).peak_bytes


def test_what_is_emitted_computes_the_step(large):
    rng = np.random.default_rng(0)
    args = [rng.normal(size=v.aval.shape).astype(np.float32) / 8 for v in large[0].posed.joint.jaxpr.invars]
    wanted = step(args[:-1], args[-1])
    for outcome in large:
        for ours, theirs in zip(outcome.script.run(args), wanted, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_less_is_predicted_of_what_runs_again(large):
    plain, smallest = large
    assert smallest.peak_bytes < 0.7 * plain.peak_bytes and smallest.cost > plain.cost


def test_results_in_donated_buffers_are_counted_once():
    whole, aliased = (
        posed(64, **more).graph.resident_bytes for more in ({}, {"aliased": Aliased(frozenset({0}), 4096)})
    )
    assert whole - aliased == 4096
    assert posed(64, is_body=True).graph.resident_bytes == 0


def test_scans_run_again_only_where_they_may():
    scanned = lambda w, x: jnp.sum(jax.lax.scan(lambda c, row: (jnp.tanh(c @ w), row), x, x)[0])
    args = jax.ShapeDtypeStruct((4, 4), jnp.float32), jax.ShapeDtypeStruct((4, 4), jnp.float32)
    program = pose_program(trace_step(scanned, args, ["", ""], [False] * 2, [None] * 2).jaxpr, CPU)
    (place,) = (i for i, eqn in enumerate(program.joint.eqns) if eqn.primitive.name == "scan")
    assert np.isfinite(program.run_seconds()[place])
    assert np.isinf(program.run_seconds(again_scans=False)[place])
