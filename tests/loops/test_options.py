"""What one iteration may do: every option is a schedule that can run, and gives the exact gradient."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxremat.backends.devices import resolve_target
from jaxremat.cost.pricing import price
from jaxremat.emit.script import write_script
from jaxremat.graph.replay import replay
from jaxremat.graph.scheduled import schedule_program
from jaxremat.loops.decide import Loops
from jaxremat.loops.decision import LoopDecision, Piece
from jaxremat.trace import jaxpr as jaxprs
from jaxremat.trace.primal import read_primal


def array(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape) / 3, jnp.float32)


def layers(ws, x):
    """Slices, a constant, element-wise values of several sizes, a stacked result."""
    table = jnp.linspace(0, 1, 8)

    def body(c, w):
        h = jnp.tanh(c @ w)
        wide = jnp.concatenate([jnp.sin(h), jnp.cos(h * h)], -1) * 2
        return c + wide[:, :8] * table + wide[:, 8:], jnp.sum(wide)

    c, sums = lax.scan(body, x, ws)
    return jnp.sum(c**2) + jnp.sum(sums)


def recurrence(w, xs):
    """Carries that are not differentiated: a count, and a seed that drops entries."""

    def body(carry, x):
        c, count, seed = carry
        seed = seed * 1664525 + 1013904223
        keep = (seed >> 16) + jnp.arange(8, dtype=jnp.uint32) & 3 > 0
        c = jnp.where(keep, jnp.tanh(c @ w + x) / 0.75, 0.1) + jnp.sin(c) * count
        return (c, count + 1, seed), None

    start = (jnp.ones((4, 8)), jnp.int32(0), jnp.uint32(1))
    (c, _, _), _ = lax.scan(body, start, xs, reverse=True)
    return jnp.sum(c)


PROGRAMS = {
    "layers": (layers, (array(5, 8, 8), array(4, 8, seed=1))),
    "recurrence": (recurrence, (array(8, 8), array(5, 4, 8, seed=2))),
}


@functools.cache
def loop_of(name):
    fun, args = PROGRAMS[name]
    loops = Loops(read_primal(fun, args, (0, 1), False), resolve_target(None))
    (loop,) = loops.found
    return loops, loop, loops.hull(loop)


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_option_is_a_schedule_that_can_run(name):
    loops, loop, hull = loop_of(name)
    joint = loops.emitter.joint(loop.body)
    graph = price(joint)
    late = np.flatnonzero(joint.backward).tolist()
    assert len(hull.options) >= 3
    for option in hull.options:
        steps = np.asarray((*option.forward, *option.backward))
        replay(graph, steps)
        assert not joint.backward[list(option.forward)].any() and len(set(option.forward)) == len(option.forward)
        assert [node for node in option.backward if joint.backward[node]] == late
        again = [node for node in option.backward if not joint.backward[node]]
        assert option.seconds == pytest.approx(graph.costs[again].sum(), abs=1e-15)


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_corners_trade_bytes_for_seconds(name):
    _, loop, hull = loop_of(name)
    corners = []
    for option in hull.options:  # the corners come first, by falling bytes; ways to do the last one in parts follow
        if corners and option.stacked_bytes >= corners[-1].stacked_bytes:
            break
        corners.append(option)
    assert corners[0].seconds == 0 < corners[-1].seconds
    assert [o.seconds for o in corners] == sorted(o.seconds for o in corners)
    assert corners[0].stacked_bytes > corners[-1].stacked_bytes > 0
    rest = hull.options[len(corners) :]
    assert {o.stacked_bytes for o in rest} == {corners[-1].stacked_bytes}
    carry = loop.body.primal.jaxpr.invars[loop.body.num_consts :][: loop.body.num_carry]
    assert hull.carry_bytes == sum(map(jaxprs.size_bytes, carry))


@pytest.mark.parametrize("name", PROGRAMS)
def test_stacked_bytes_are_what_the_forward_leaves(name):
    """All that the backward reads from before it, without constants, which are not stacked, and slices."""
    loops, loop, hull = loop_of(name)
    joint, body = loops.emitter.joint(loop.body), loop.body
    free = {*joint.inputs[: body.num_consts], *joint.inputs[body.num_consts + body.num_carry :]}
    for option in hull.options:
        steps = (*option.forward, *option.backward)
        script = write_script(joint, schedule_program(joint, steps, backward_start=len(option.forward)))
        left = sum(jaxprs.size_bytes(v) for v in script.residuals if v not in free)
        assert left == option.stacked_bytes


@pytest.mark.parametrize("fenced", [False, True], ids=["loose", "fenced"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_every_option_gives_the_exact_gradient(name, fenced):
    fun, args = PROGRAMS[name]
    loops, loop, hull = loop_of(name)

    def gradient(decision):
        planned = loops.emitted([decision])
        return jax.value_and_grad(lambda *args: planned(args)[0], (0, 1))(*args)

    with jax.disable_jit():  # one operation after the other: compiling every option takes far longer
        plain = jax.value_and_grad(fun, (0, 1))(*args)
        for option in hull.options:
            decision = LoopDecision((Piece(loop.length, option.forward, option.backward),), has_barriers=fenced)
            assert LoopDecision.from_json(json.loads(json.dumps(decision.to_json()))) == decision
            for a, b in zip(jax.tree.leaves(gradient(decision)), jax.tree.leaves(plain), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6 * float(jnp.abs(b).max()))


@pytest.mark.parametrize("name", PROGRAMS)
def test_where_the_loop_is_fence_enough_fusion_counts(name):
    """An accelerator's compiler merges what an iteration repeats, unless barriers keep all its values apart."""
    fun, args = PROGRAMS[name]
    loops = Loops(read_primal(fun, args, (0, 1), False), resolve_target("h200"))
    (loop,) = loops.found
    leaf = loops.estimate(loop, 1e3).decision.pieces[0].leaf
    assert not leaf.repeats
    fenced, fused = loop_of(name)[2].options, loops.hull(loop).options
    assert min(o.transient_bytes for o in fused) < min(o.transient_bytes for o in fenced)
