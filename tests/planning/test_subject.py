"""What is compiled for an outcome is what its plan runs and what `verify` compiles."""

import jax
import jax.numpy as jnp
import pytest
from gradient_programs import count
from jax.ad_checkpoint import checkpoint_name

from jaxremat.backends.devices import resolve_target
from jaxremat.chunk.choice import Chunked
from jaxremat.planning.planning import Planning
from jaxremat.planning.request import checked_request
from jaxremat.planning.verification import compile_plan

CPU = resolve_target("cpu")


def request(fun, *args, emit="schedule", allow=()):
    asked = {"argnums": 0, "has_aux": False, "solver": "auto", "target": "cpu", "seed": 0, "verify": "compile"}
    return checked_request(fun, args, emit=emit, allow=allow, **asked)


def headed(params, x, labels):
    """A layer in a checkpoint, and logits that are larger than all else."""
    x = jax.checkpoint(lambda w, x: jnp.sin(jnp.sin(x @ w) @ w))(params["layer"], x)
    logits = jax.nn.log_softmax(x @ params["head"])
    return -jnp.mean(jnp.take_along_axis(logits, labels[:, None], 1))


def named(w, x):
    block = jax.checkpoint(lambda w, x: jnp.sin(checkpoint_name(jnp.sin(x @ w), "inner") @ w))
    return jnp.sum(block(w, x))


HEADED = {"layer": jnp.eye(8), "head": jnp.ones((8, 1024))}, jnp.ones((256, 8)), jnp.zeros((256,), jnp.int32)
NAMED = jnp.eye(8), jnp.ones((256, 8))
IN_CHUNKS = (Chunked("loss head", (256, 1024), 2**14),)


@pytest.mark.parametrize(
    ("fun", "args", "emit", "chunks"),
    [(headed, HEADED, "schedule", ()), (headed, HEADED, "schedule", IN_CHUNKS), (named, NAMED, "names", ())],
    ids=["checkpoints", "chunks", "own names"],
)
def test_a_program_without_recomputation_is_planned_as_it_is_compiled(fun, args, emit, chunks):
    planning = Planning(request(fun, *args, emit=emit, allow=("chunk",) if chunks else ()), chunks)
    outcome, report = planning.baseline.outcome, planning.baseline.report
    plan = planning._plan(outcome, report.peak_bytes)
    assert compile_plan(plan, CPU).report.peak_bytes == report.peak_bytes
    assert jax.jit(jax.value_and_grad(plan.apply(fun))).lower(*args).compile().memory_analysis().temp_size_in_bytes == (
        report.temp_bytes
    )


def test_parts_in_chunks_leave_the_checkpoints_of_the_author():
    plan = Planning(request(headed, *HEADED, allow=("chunk",)), IN_CHUNKS)
    plan = plan._plan(plan.baseline.outcome, 2**30)
    assert count(plan.apply(headed), *HEADED, primitive="remat2") == count(headed, *HEADED, primitive="remat2") > 0
