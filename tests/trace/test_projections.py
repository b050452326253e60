"""Projections of what weight gradients read: right on average, for those gradients only, and never made whole again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxremat.backends.devices import resolve_target
from jaxremat.cost.pricing import price
from jaxremat.emit.scheduled import run_backward, run_forward
from jaxremat.emit.script import write_script
from jaxremat.graph.scheduled import schedule_program
from jaxremat.loops.emit import Emitter
from jaxremat.loops.find import find
from jaxremat.solvers.mincut.assemble import assemble_parts
from jaxremat.trace import jaxpr as jaxprs
from jaxremat.trace.joint import differentiate
from jaxremat.trace.primal import read_primal
from jaxremat.trace.projections import DEVIATION, LEAST_WIDTH, PARTS, restored, stored
from jaxremat.trace.round_trips import PROJECTED

N, ROWS = 64, 128
X = jax.random.normal(jax.random.key(0), (ROWS, N))
W = [jax.random.normal(jax.random.key(k), (N, N)) / 8 for k in range(1, 4)]


def layered(ws, x):
    for w in ws:
        x = jax.nn.relu(x @ w)
    return jnp.mean(x**2)


def projected(fun, *args, argnums=(0, 1)):
    return differentiate(read_primal(fun, args, argnums, False), None, (PROJECTED.form,))


def relative(a, b):
    return float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b))


def off(joint, *inputs):
    """How far each result and gradient is from what it is without round trips."""
    given = [*jax.tree.leaves(inputs), *(jnp.ones(v.aval.shape, v.aval.dtype) for v in joint.cotangents)]
    both = [jaxprs.evaluate(program.jaxpr, given) for program in (joint, joint.direct)]
    return [relative(a, b) for a, b in zip(*both, strict=True)]


def test_a_projection_is_right_on_average_and_errors_fall_with_the_root_of_their_number():
    """A seed is mixed from the array: arrays that differ by next to nothing have independent projections."""
    dy = jax.random.normal(jax.random.key(1), (ROWS, 48))

    def estimate(key):
        x = X + 1e-6 * jax.random.normal(key, X.shape)
        return restored(stored(x), jax.ShapeDtypeStruct(x.shape, x.dtype)).T @ dy

    estimates = jax.jit(jax.vmap(estimate))(jax.random.split(jax.random.key(2), 2048))
    for number in (1, 32, 2048):
        assert relative(estimates[:number].mean(0), X.T @ dy) == pytest.approx(DEVIATION / number**0.5, rel=0.15)


def test_equal_arrays_have_equal_projections_and_others_have_others():
    z, seed = jax.jit(stored)(X)
    again, same = jax.jit(stored)(X + 0)
    assert z.shape == (ROWS, N // PARTS) and z.dtype == X.dtype
    np.testing.assert_array_equal(z, again)
    assert seed == same
    others = [stored(X.at[0, 0].add(1e-6))[1], stored(X[::-1])[1], stored(-X)[1], stored(X.astype(jnp.bfloat16))[1]]
    assert len({int(each) for each in (seed, *others)}) == 5


def test_what_waits_in_half_precision_is_as_large_as_what_it_stands_for():
    large = (1e3 * X).astype(jnp.float16)
    z, _ = stored(large)
    assert z.dtype == jnp.float16 and jnp.isfinite(z).all()
    assert float(jnp.linalg.norm(z.astype(jnp.float32)) / jnp.linalg.norm(large.astype(jnp.float32))) < 1.2


def test_only_gradients_of_weights_are_off():
    joint = projected(layered, W, X)
    assert [trip.form for trip in joint.round_trips] == [PROJECTED.form] * 2  # the first layer reads an argument
    loss, first, *others, of_x = off(joint, W, X)
    assert loss == first == of_x == 0
    assert all(each == pytest.approx(DEVIATION, rel=0.2) for each in others)


def scaled(w, x):
    return jnp.sum(jnp.tanh(jnp.sin(x) @ (w * jnp.mean(w))))


def normed(w, x):
    h = jax.nn.relu(x @ w)
    return jnp.sum((h / jnp.sum(h * h)) @ w)


def attended(w, x):
    h = jnp.sin(x)
    return jnp.sum(jnp.tanh(h @ (h.T @ (h @ w))))


def multiplied(w, x):
    """A product with what is computed, of which the gradient goes on."""
    return jnp.sum(jnp.tanh(jnp.sin(x) @ (jnp.cos(x).T @ x)) * w[:1])


def batched(w, x):
    return jnp.sum(jnp.tanh(jnp.einsum("bsn,bnm->bsm", jnp.sin(x.reshape(2, -1, N)), jnp.stack([w, 2 * w]))))


@pytest.mark.parametrize("fun", [scaled, attended, multiplied, batched])
def test_what_else_reads_a_value_never_sees_a_projection(fun):
    assert not projected(fun, W[0], X).round_trips


def test_a_value_that_derivatives_read_too_stays_as_it_is():
    joint = projected(normed, W[0], X)
    maker = {v: eqn.primitive.name for eqn in joint.eqns for v in eqn.outvars}
    assert [maker[trip.source] for trip in joint.round_trips] == ["div"]


@pytest.mark.parametrize(("rows", "width"), [(ROWS, LEAST_WIDTH - 1), (N - 1, N)])
def test_what_is_narrow_or_has_few_rows_is_not_projected(rows, width):
    w, x = jnp.ones((width, 32)), jnp.ones((rows, width))
    assert not projected(lambda w, x: jnp.sum(jnp.tanh(jnp.sin(x) @ w)), w, x).round_trips


@pytest.mark.parametrize("spec", ["bsn,nm->bsm", "bsn,nm->mbs", "bsn,mn->bsm", "bsn,nhd->bshd"])
def test_a_product_may_be_written_in_any_order(spec):
    w = jax.random.normal(jax.random.key(3), [{"n": N, "m": 16, "h": 4, "d": 8}[c] for c in spec[4 : spec.index("-")]])
    x = X.reshape(2, -1, N)
    joint = projected(lambda w, x: jnp.sum(jnp.tanh(jnp.einsum(spec, jnp.sin(x), w)) ** 2), w, x)
    assert len(joint.round_trips) == 1
    inputs, cotangents = [w, x], [jnp.ones(())]
    _loss, of_w, of_x = emitted(joint, inputs, cotangents)
    whole = jaxprs.evaluate(joint.jaxpr, [*inputs, *cotangents])
    np.testing.assert_allclose(of_w, whole[1], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(of_x, jaxprs.evaluate(joint.direct.jaxpr, [*inputs, *cotangents])[2], rtol=1e-5)


def script_of(joint, keep):
    """Of a schedule that keeps some values, and runs everything else again."""
    graph = price(joint)
    kept = np.asarray([keep(v) for v in joint.values])
    steps, start = assemble_parts(graph, kept)
    return write_script(joint, schedule_program(graph, steps, backward_start=start))


def emitted(joint, inputs, cotangents):
    waiting = {v for trip in joint.round_trips for v in trip.waiting}
    script = script_of(joint, waiting.__contains__)
    assert waiting <= set(script.residuals)
    outputs, residuals = run_forward(joint, script, inputs)
    return [*outputs, *run_backward(joint, script, residuals, cotangents)]


def test_estimates_are_made_without_the_array():
    joint = projected(layered, W, X)
    waiting = {v for trip in joint.round_trips for v in trip.waiting}
    masks = {v for eqn in joint.eqns if eqn.primitive.name == "gt" for v in eqn.outvars}
    script = script_of(joint, (waiting | masks).__contains__)
    late = [eqn for segment in script.backward for eqn in segment.eqns]
    names = [str(eqn.params.get("name", eqn.primitive.name)) for eqn in late]
    assert names.count("estimate_from_projection") == 2
    assert not {trip.way_back for trip in joint.round_trips} & set(late)
    shapes = [v.aval.shape for eqn in late if eqn.primitive.name == "jit" for v in eqn.outvars]
    assert shapes == [(N, N)] * 2


def test_where_the_value_is_there_gradients_are_exact():
    joint = projected(layered, W, X)
    inputs, cotangents = jax.tree.leaves((W, X)), [jnp.ones(())]
    wanted = jaxprs.evaluate(joint.direct.jaxpr, [*inputs, *cotangents])
    sources = {trip.source for trip in joint.round_trips}
    for keep in (lambda v: False, sources.__contains__):
        script = script_of(joint, keep)
        outputs, residuals = run_forward(joint, script, inputs)
        for a, b in zip(wanted, [*outputs, *run_backward(joint, script, residuals, cotangents)], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-8)


def test_a_loop_carry_s_cotangent_is_no_weight_gradient():
    """What a loop carries is multiplied like a weight, and its cotangent goes on."""

    def through(weights, x):
        def step(state, w):
            h = jnp.sin(x @ w)
            return state + h.T @ jnp.tanh(h @ state) / ROWS, None

        return jnp.sum(lax.scan(step, jnp.ones((N, N)), weights)[0])

    def plain(weights, x):
        return jnp.sum(lax.scan(lambda x, w: (x + jnp.sin(jax.nn.relu(x) @ w), None), x, weights)[0])

    def trips(fun):
        primal = read_primal(fun, (jnp.stack(W), X), 0, False)
        (loop,) = find(primal)
        return Emitter(resolve_target("cpu").backend, (PROJECTED.form,)).joint(loop.body).round_trips

    assert len(trips(plain)) == 1 and not trips(through)
