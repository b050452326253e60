"""What differs between platforms, asked of the plan's device and never of the running backend."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxremat.attention import rewrite
from jaxremat.backends.devices import DEVICES, resolve_target
from jaxremat.emit.script import write_script
from jaxremat.graph.scheduled import schedule_program
from jaxremat.loops.body import scripted
from jaxremat.loops.decide import Loops
from jaxremat.loops.decision import Piece
from jaxremat.planner.problem import pose
from jaxremat.trace import jaxpr as jaxprs
from jaxremat.trace.primal import read_primal

IMAGES = jax.ShapeDtypeStruct((2, 16, 16, 8), jnp.float32)


def pooled(scale, x):
    y = jnp.sin(x * scale)
    y = jax.lax.reduce_window(y, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    return jnp.sum(jnp.cos(y))


def posed(target):
    scale = jax.ShapeDtypeStruct((), jnp.float32)
    return pose(read_primal(pooled, (scale, IMAGES), 0, False), resolve_target(target))


def searched(joint):
    """(node that makes it, variable) of what the gradient of the pooling searches."""
    (gradient,) = [eqn for eqn in joint.eqns if eqn.primitive.name == "select_and_scatter_add"]
    var = gradient.invars[1]
    (node,) = [i for i, eqn in enumerate(joint.eqns) if var in eqn.outvars]
    return node, var


@pytest.mark.parametrize(("target", "kept"), [("cpu", True), ("h200", False), ("tpu-v5e", False)])
def test_only_on_a_cpu_is_what_a_pooling_searches_kept_and_left_unfenced(target, kept):
    problem = posed(target)
    node, var = searched(problem.joint)
    assert np.isinf(problem.run_seconds[node]) == kept
    start = int(problem.joint.backward.argmax())
    again = [n for n in range(start) if n != node]
    schedule = [*range(start), *again, *range(start, len(problem.joint.eqns))]
    program = schedule_program(problem.joint, schedule, backward_start=start)
    script = write_script(problem.joint, program, problem.device.backend.unfenced(problem.joint.eqns))
    assert var in script.residuals
    assert any(var in segment.barrier_operands for segment in script.backward) != kept


@pytest.mark.parametrize(("target", "kept"), [("cpu", True), ("h200", False), ("tpu-v5e", False)])
def test_so_it_is_behind_the_barriers_of_an_iteration(target, kept):
    def summed(scale, batches):
        return jax.lax.scan(lambda total, x: (total + pooled(scale, x), None), 0.0, batches)[0]

    args = jax.ShapeDtypeStruct((), jnp.float32), jax.ShapeDtypeStruct((3, *IMAGES.shape), jnp.float32)
    loops = Loops(read_primal(summed, args, 0, False), resolve_target(target))
    (loop,) = loops.found
    joint = loops.emitter.joint(loop.body)
    node, var = searched(joint)
    start = int(joint.backward.argmax())
    again = [n for n in range(start) if n != node]
    piece = Piece(loop.length, tuple(range(start)), (*again, *range(start, len(joint.eqns))))
    script = scripted(loop.body, joint, piece, True, loops.device.backend).script
    assert any(var in segment.barrier_operands for segment in script.backward) != kept


def test_tiles_are_those_of_the_target():
    def attention(q, k, v):
        return jnp.einsum("bqk,bkd->bqd", jax.nn.softmax(jnp.einsum("bqd,bkd->bqk", q, k)), v)

    args = [jax.ShapeDtypeStruct((4, 2048, 16), jnp.float32)] * 3

    def largest(target):
        jaxpr = jax.make_jaxpr(rewrite(attention, target=target))(*args).jaxpr
        return max(_entries(jaxpr))

    assert largest("cpu") == DEVICES["cpu"].backend.scores_per_tile == 2**20
    assert largest("h200") == largest("tpu-v5e") == DEVICES["h200"].backend.scores_per_tile == 2**22
    assert largest(None) == largest("cpu")


def _entries(jaxpr):
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            yield int(np.prod(eqn.outvars[0].aval.shape))
        for inner in jaxprs.subjaxprs(eqn):
            yield from _entries(inner)
