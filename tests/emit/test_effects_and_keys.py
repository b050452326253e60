"""Effects happen as often as in the plain function, whatever is run again; dropout draws the same numbers."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from emitted import FORMS, PLAIN_JAX, array, assert_same, plan_of, products
from jax import lax
from jax.experimental import io_callback

from jaxremat.cost.pricing import price
from jaxremat.emit.scheduled import emit_scheduled
from jaxremat.emit.script import write_script
from jaxremat.graph.scheduled import schedule_program
from jaxremat.planner.decision import Schedule
from jaxremat.planning.plan import apply_flat
from jaxremat.solvers.mincut.assemble import assemble_parts
from jaxremat.solvers.mincut.search import Search
from jaxremat.trace.joint import trace_joint

WS = [array(8, 8, seed=i, scale=0.4) for i in range(6)]
X = array(256, 8, seed=10)
SEEN: list[str] = []


def layered(ws, x):
    """Reports after the third layer, inside a call, of what no gradient passes through, and in a loop."""
    for k, w in enumerate(ws):
        x = jnp.tanh(x @ w)
        if k == 2:
            jax.debug.callback(lambda v: SEEN.append("debug"), x[0, 0])
    x = jax.jit(_reporting)(x)
    io_callback(lambda v: SEEN.append("io"), None, lax.stop_gradient(jnp.cos(x).sum()))
    return jnp.sum(lax.scan(_looping, x, None, length=3)[0] ** 2)


def _reporting(x):
    jax.debug.callback(lambda v: SEEN.append("in a call"), x.sum())
    return jnp.sin(x)


def _looping(x, _):
    jax.debug.callback(lambda v: SEEN.append("in a loop"), x.sum())
    return jnp.tanh(x), None


ONCE = {"debug": 1, "in a call": 1, "io": 1, "in a loop": 3}


def seen_by(fun, *args):
    """What a compiled run reports."""
    SEEN.clear()
    jax.block_until_ready(jax.jit(fun)(*args))
    jax.effects_barrier()
    return dict(collections.Counter(SEEN))


@functools.cache
def plan_for(form):
    return plan_of(layered, (WS, X), form)


def planned(form):
    return plan_for(form).apply(layered)


@pytest.mark.parametrize("form", FORMS)
def test_effects_happen_once_in_a_gradient(form):
    assert seen_by(jax.value_and_grad(planned(form)), WS, X) == ONCE


def test_effects_happen_once_without_a_gradient():
    assert seen_by(planned("schedule"), WS, X) == ONCE


@pytest.mark.parametrize("form", FORMS)
def test_effects_happen_once_per_example_and_per_step(form):
    xs = jnp.stack([X, 2 * X])
    step = lambda f: lambda ws, x: (jax.tree.map(lambda w, g: w - g, ws, jax.grad(f)(ws, x)), None)
    scanned = seen_by(lambda ws: lax.scan(step(planned(form)), ws, xs)[0], WS)
    assert scanned == {name: 2 * number for name, number in ONCE.items()}
    mapped = seen_by(jax.vmap(jax.grad(planned(form)), (None, 0)), WS, xs)
    assert mapped == {name: 2 * number for name, number in ONCE.items()}


def test_effects_happen_once_however_small_the_budget():
    """Searched schedules of small peak, emitted one by one."""
    problem = plan_for("schedule").problem
    search = Search(problem.graph, problem.run_seconds)
    for candidate in search.small_ones()[:2]:
        flat = Schedule(candidate.program, problem.loops).emitted(problem.primal, problem.device)
        fun = lambda ws, x, flat=flat: apply_flat(problem.primal, flat, (ws, x))
        assert products(jax.grad(fun), WS, X) > products(jax.grad(layered), WS, X)
        assert seen_by(jax.grad(fun), WS, X) == ONCE


def test_ordered_effects_keep_their_order():
    def fun(ws, x):
        for k, w in enumerate(ws):
            x = jnp.tanh(x @ w)
            io_callback(lambda k=k: SEEN.append(k), None, ordered=True)
        return jnp.sum(x**2)

    emitted = plan_of(fun, (WS, X), "schedule").apply(fun)
    SEEN.clear()
    jax.block_until_ready(jax.jit(jax.grad(emitted))(WS, X))
    jax.effects_barrier()
    assert list(range(6)) == SEEN


def dropping(ws, x, key):
    """Each layer draws from the key that it is given, and from one that it splits off for the next."""
    for w in ws:
        key, drawn = jax.random.split(key)
        keep = jax.random.bernoulli(drawn, 0.7, x.shape)
        x = jnp.where(keep, jnp.tanh(x @ w) / 0.7, 0.0)
    return jnp.sum(x**2), (x > 0, jax.random.key_data(key))


@functools.cache
def dropped(raw):
    return jax.jit(jax.value_and_grad(dropping, has_aux=True))(WS[:3], X, _key(raw))


def _key(raw):
    return jax.random.PRNGKey(7) if raw else jax.random.key(7)


def assert_drops_the_same(emitted, raw=False):
    (value, (positive, key)), gradient = jax.jit(jax.value_and_grad(emitted, has_aux=True))(WS[:3], X, _key(raw))
    (plain_value, (plain_positive, plain_key)), plain_gradient = dropped(raw)
    assert np.array_equal(positive, plain_positive) and np.array_equal(key, plain_key)
    assert_same((value, gradient), (plain_value, plain_gradient), rtol=1e-5)


@pytest.mark.parametrize("form", PLAIN_JAX)
def test_dropout_that_is_run_again_drops_the_same(form):
    assert_drops_the_same(plan_of(dropping, (WS[:3], X, _key(False)), form, has_aux=True).apply(dropping))


@pytest.mark.parametrize("raw", [False, True], ids=["typed", "raw"])
def test_dropout_of_which_nothing_is_kept_drops_the_same(raw):
    """The backward splits the keys and draws the bits again: all of them."""
    joint = trace_joint(dropping, WS[:3], X, _key(raw), has_aux=True)
    graph = price(joint)
    schedule, start = assemble_parts(graph, np.zeros(graph.num_values, bool))
    again = {joint.eqns[node].primitive.name for node in schedule[start:] if not graph.backward[node]}
    assert again & {"random_bits", "threefry2x32"} and again & {"random_split", "threefry2x32"}
    script = write_script(joint, schedule_program(graph, schedule, backward_start=start))
    emitted = emit_scheduled(joint.primal, lambda _: (joint, script))
    assert_drops_the_same(lambda *args: apply_flat(joint.primal, emitted, args), raw)
