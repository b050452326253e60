"""Scans that make what they write into when they run: the same results, and arrays that do not wait beside a peak."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxremat.backends.devices import resolve_target
from jaxremat.base import compat
from jaxremat.base.compat import Var
from jaxremat.cost.memory import estimate_memory
from jaxremat.trace import jaxpr as jaxprs
from jaxremat.trace.joint import trace_joint

CPU = resolve_target("cpu")
W = 0.3 * jax.random.normal(jax.random.key(0), (8, 8))
X = jax.random.normal(jax.random.key(1), (5, 4, 8))


def running(w, x, **options):
    """A carry, stacked results, and, in the backward, weights summed from zeros on."""

    def step(total, row):
        y = jnp.tanh(row @ w + total)
        return total + y.sum(), y

    total, rows = lax.scan(step, 0.0, x, **options)
    return jnp.sum(rows**2) + total


def with_late_writes(joint):
    """What a joint program computes with its scans in their other form."""
    late = {id(joint.eqns[node]): call for node, call in joint.late_writes.items()}

    def rule(eqn, inputs):
        call = late.get(id(eqn))
        if call is None:
            return None
        values = {v: x for v, x in zip(eqn.invars, inputs) if isinstance(v, Var)}
        return compat.bind(call, [values[v] for v in call.invars])

    return lambda *inputs: jaxprs.evaluate(joint.jaxpr, inputs, rule)


def as_written(joint):
    return lambda *inputs: jaxprs.evaluate(joint.jaxpr, inputs)


@pytest.mark.parametrize(
    "reverse, unroll, dtype",
    [(False, 1, "float32"), (True, 2, "float32"), (True, 5, "float32"), (True, 1, "bfloat16")],
)
def test_they_compute_the_same(reverse, unroll, dtype):
    w, x = W.astype(dtype), X.astype(dtype)
    joint = trace_joint(functools.partial(running, reverse=reverse, unroll=unroll), w, x)
    assert [joint.eqns[node].primitive.name for node in joint.late_writes] == ["scan", "scan"]
    inputs = [w, x, jnp.ones((), dtype)]
    given, expected = with_late_writes(joint)(*inputs), as_written(joint)(*inputs)
    for a, b in zip(given, expected, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(
            a.astype(float), b.astype(float), rtol=1e-5 if dtype == "float32" else 1e-2, atol=1e-5
        )


def test_programs_with_them_are_well_typed():
    joint = trace_joint(running, W, X)
    shapes = [jaxprs.shape_of(v) for v in joint.jaxpr.invars]
    compat.check_jaxpr(jax.make_jaxpr(with_late_writes(joint))(*shapes))


def test_carries_begin_as_the_number_that_they_began_as():
    def loss(w):
        return lax.scan(lambda c, _: (jnp.tanh(c @ w), None), jnp.full((4, 8), 0.5), length=3)[0].sum()

    joint = trace_joint(loss, W)
    for a, b in zip(with_late_writes(joint)(W, jnp.ones(())), jax.value_and_grad(loss)(W), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


@jax.custom_jvp
def with_its_own_rule(w, x):
    return running(w, x)


with_its_own_rule.defjvp(lambda given, tangents: (with_its_own_rule(*given), jnp.sum(given[0] * tangents[0])))


def test_scans_inside_calls_are_late_too():
    joint = trace_joint(lambda w: with_its_own_rule(w, X), W)
    ((node, call),) = joint.late_writes.items()
    assert joint.eqns[node].primitive.name == "custom_jvp_call" and "optimization_barrier" in str(call)
    for a, b in zip(with_late_writes(joint)(W, jnp.ones(())), as_written(joint)(W, jnp.ones(())), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_numbers_are_seen_through_arrays_that_are_spread_on():
    def loss(w):
        start = jnp.broadcast_to(jnp.full((8,), 0.5), (4, 8))
        return lax.scan(lambda c, _: (jnp.tanh(c @ w), None), start, length=3)[0].sum()

    joint = trace_joint(loss, W)
    assert all(len(call.invars) < len(joint.eqns[node].invars) for node, call in joint.late_writes.items())
    for a, b in zip(with_late_writes(joint)(W, jnp.ones(())), jax.value_and_grad(loss)(W), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def printing(x):
    def step(total, row):
        jax.debug.print("{}", total)
        return total + row.sum(), row * 2.0

    return lax.scan(step, 0.0, x)[1].sum()


def keys(x):
    def step(key, row):
        key, now = jax.random.split(key)
        return key, (row * jax.random.normal(now, row.shape), now)

    return lax.scan(step, jax.random.key(0), x)[1][0].sum()


def summed(x):
    """Nothing is stacked, and what is carried begins as data."""
    return lax.fori_loop(0, 3, lambda _, y: y + 1.0, x[0]).sum()


@pytest.mark.parametrize("loss", [printing, keys, summed])
def test_others_are_left_alone(loss):
    joint = trace_joint(loss, X)
    forward = [node for node in joint.late_writes if not joint.backward[node]]
    assert not forward


def chained(x, ws):
    """Loops one after another, each with stacked results and a carry that begins as zeros."""
    for w in ws:
        total, x = lax.scan(functools.partial(projected, w), jnp.zeros(x.shape[1:]), x)
        x = x + total
    return x


def projected(w, total, row):
    return total + row @ w, jnp.tanh(row @ w)


def test_what_is_written_into_is_made_when_the_loop_runs():
    """Of eight loops with a stack of 2 MiB each, two stacks lie there at a time; all from the start on otherwise."""
    shapes = jax.ShapeDtypeStruct((16, 128, 256), jnp.float32), [jax.ShapeDtypeStruct((256, 256), jnp.float32)] * 8
    joint = trace_joint(lambda x, ws: jnp.sum(chained(x, ws)), *shapes)
    inputs = [jaxprs.shape_of(v) for v in joint.jaxpr.invars]
    compiled, predicted = [], []
    for run in (with_late_writes(joint), as_written(joint)):
        forward = compat.without_dead_code(jax.make_jaxpr(lambda *inputs, run=run: run(*inputs)[0])(*inputs))
        executable = jax.jit(functools.partial(jaxprs.evaluate, forward)).lower(inputs).compile()
        compiled.append(executable.memory_analysis().temp_size_in_bytes)
        predicted.append(estimate_memory(forward, CPU).temp_bytes)
    assert compiled[0] < 2.6 * 2**21 and compiled[1] > 8 * 2**21
    assert predicted == pytest.approx(compiled, rel=0.05)


def picking(w, x):
    """Two lookups, whose gradients are scattered into zeros, and rows that are scattered in the forward."""
    picked = jnp.tanh(w[jnp.asarray([[0, 3], [3, 5]])])
    return jnp.sum(picked**2) + jnp.sum(jnp.zeros_like(w).at[jnp.asarray([1, 1, 7])].add(x[0, :3] @ w) ** 2)


def test_scatters_are_among_them_but_not_where_the_sum_is_added_to_more():
    joint = trace_joint(picking, W, X)
    late = [joint.eqns[node].primitive.name for node in joint.late_writes]
    assert late == ["scatter-add"]  # the sum of gradients is one of the lookup's and the product's
    inputs = [W, X, jnp.ones(())]
    for a, b in zip(with_late_writes(joint)(*inputs), as_written(joint)(*inputs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
