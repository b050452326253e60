"""Indices that wait in the fewest bytes: which ones do, that they come back as they were, and what plans make of it."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxremat
from jaxremat.trace import jaxpr as jaxprs
from jaxremat.trace.joint import trace_joint
from jaxremat.trace.round_trips import LOSSLESS, round_trips_in, with_round_trips

W = [0.1 * jax.random.normal(jax.random.key(i), (64, 64)) for i in range(4)]
WIDE = [0.1 * jax.random.normal(jax.random.key(i), (64, 256)) for i in range(4)]
X = jax.random.normal(jax.random.key(9), (2048, 64))


def pooled(y):
    """The largest of four, and where it was."""
    windows = y.reshape(*y.shape[:-1], -1, 4)
    index = jnp.argmax(windows, axis=-1)
    return jnp.take_along_axis(windows, index[..., None], axis=-1)[..., 0], index


def encoded(ws, x):
    """As in SegNet: pooled with indices, and unpooled by them in the end."""
    indices = []
    for w in ws:
        x, index = pooled(x @ w)
        indices.append(index)
    for w, index in zip(ws, reversed(indices)):
        x = jnp.tanh(x[..., None] * jax.nn.one_hot(index, 4)).reshape(x.shape[0], -1) @ w.T
    return jnp.mean(x**2)


def quantised(ws, x):
    """The nearest of 64 codes, straight through."""
    for w in ws:
        near = jnp.argmin(jnp.sum(w**2, 1) - 2 * x @ w.T, axis=-1)
        x = jnp.tanh(x + jax.lax.stop_gradient(w[near] - x)) + w[near]
    return jnp.mean(x**2)


def routed(ws, x):
    """Each row by the two experts, of four, that a router likes best."""
    for w in ws:
        gates, experts = jax.lax.top_k(x @ w[:, :4], 2)
        x = x + sum(jnp.tanh(x * w[experts[:, k]]) * jax.nn.sigmoid(gates[:, k : k + 1]) for k in range(2))
    return jnp.mean(x**2)


def arranged(ws, x):
    """What a layer makes of every row, in the order of the row."""
    for w in ws:
        x = jnp.take_along_axis(jnp.tanh(x @ w), jnp.argsort(x, axis=-1), axis=-1)
    return jnp.mean(x**2)


@pytest.mark.parametrize(("fun", "ws"), [(encoded, WIDE), (quantised, W), (routed, W), (arranged, W)])
def test_indices_come_back_as_they_were(fun, ws):
    joint = trace_joint(fun, ws, X)
    jaxpr = with_round_trips(joint.jaxpr, joint.backward, LOSSLESS)
    trips = [trip for trip in round_trips_in(jaxpr) if trip.form != "bits"]
    assert len(trips) >= len(ws) and {trip.form for trip in trips} == {"uint8"}
    inputs = [*ws, X, jnp.ones(())]
    wanted, given = (jaxprs.evaluate(each, inputs) for each in (joint.jaxpr, jaxpr))
    for a, b in zip(wanted, given, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("low", "high", "form"),
    [(0, 255, "uint8"), (0, 256, "uint16"), (300, 499, "uint8"), (-1, 254, "uint8"), (-1, 255, "uint16")],
)
def test_bounds_decide_how_many_bytes_an_index_takes(low, high, form):
    def loss(w, tokens):
        return jnp.sum(jnp.sin(jnp.clip(tokens, low, high)) * w)

    joint = trace_joint(loss, jnp.ones(7), jnp.arange(7))
    jaxpr = with_round_trips(joint.jaxpr, joint.backward, LOSSLESS)
    (trip,) = round_trips_in(jaxpr)
    assert trip.form == trip.stored.aval.dtype.name == form
    inputs = [jnp.linspace(1, 2, 7), jnp.linspace(low - 3, high + 3, 7).astype(jnp.int32), jnp.ones(())]
    for a, b in zip(jaxprs.evaluate(joint.jaxpr, inputs), jaxprs.evaluate(jaxpr, inputs), strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_follows_from_an_index_is_not_stored_beside_it():
    """The index of a gather is made of it in steps; what nothing bounds, or only constants lead to, waits as it is."""

    def loss(w, x, tokens):
        y = jnp.take_along_axis(x @ w, jnp.argmax(x @ w, axis=-1, keepdims=True), axis=-1)
        return jnp.sum(y**2 * w[tokens] * w[jnp.arange(4) * 3 % 4])

    joint = trace_joint(loss, jnp.ones((4, 4)), jnp.ones((4, 4)), jnp.arange(4))
    (trip,) = round_trips_in(with_round_trips(joint.jaxpr, joint.backward, LOSSLESS[1:]))
    assert trip.source.aval.shape == (4,), "the index itself, before it has an axis more"


def test_what_follows_from_an_index_is_stored_where_it_takes_fewer_bytes():
    def loss(w, tokens):
        return jnp.sum(jnp.sin(jnp.clip(tokens, 0, 256) & 255) * w)

    joint = trace_joint(loss, jnp.ones(7), jnp.arange(7))
    trips = round_trips_in(with_round_trips(joint.jaxpr, joint.backward, LOSSLESS))
    assert [trip.form for trip in trips] == ["uint16", "uint8"]


@pytest.mark.parametrize(("width", "number"), [(64, 1), (1024, 0)])
def test_an_index_that_is_small_beside_what_it_is_found_in_stays_as_it_is(width, number):
    def loss(w, x):
        return jnp.sum(w[jnp.argmax(jnp.tanh(x), axis=-1)] ** 2)

    joint = trace_joint(loss, jnp.ones((width,)), jnp.ones((32, width)))
    assert len(round_trips_in(with_round_trips(joint.jaxpr, joint.backward, LOSSLESS))) == number


def test_an_index_that_no_gradient_needs_is_not_stored():
    def loss(w, x):
        logits = x @ w
        return jnp.sum(logits**2), jnp.mean(jnp.argmax(logits, axis=-1) == 3)

    joint = trace_joint(loss, jnp.ones((4, 8)), jnp.ones((7, 4)), has_aux=True)
    assert not round_trips_in(with_round_trips(joint.jaxpr, joint.backward, LOSSLESS))


def test_a_plan_keeps_indices_in_bytes_in_memory_and_in_its_file(tmp_path):
    made = jaxremat.plan(encoded, WIDE, X, budget=0.4)
    made.save(tmp_path / "plan.json")
    loaded = jaxremat.load_plan(tmp_path / "plan.json", encoded, WIDE, X)
    forms = [collections.Counter(value.form for value in plan.saved) for plan in (made, loaded)]
    assert forms[0] == forms[1] and forms[0]["uint8"] >= 3, forms
    assert "uint8" in str(made)
    wanted = jax.jit(jax.value_and_grad(encoded))(WIDE, X)
    for plan in (made, loaded):
        given = jax.jit(jax.value_and_grad(plan.apply(encoded)))(WIDE, X)
        for a, b in zip(jax.tree.leaves(wanted), jax.tree.leaves(given), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-7)


@pytest.mark.aot
def test_on_a_gpu_the_indices_of_pooling_wait_in_a_byte():
    """Within half of its bytes a network that pools by argmax takes less time than with indices of four bytes."""
    ws = [jax.ShapeDtypeStruct((512, 2048), jnp.float32)] * 6
    x = jax.ShapeDtypeStruct((4096, 512), jnp.float32)
    made = jaxremat.plan(encoded, ws, x, budget=0.45, target="h200")
    assert {value.form for value in made.saved} == {"device", "uint8"}
    assert made.overhead < -0.05  # -0.115; -0.021 with indices of four bytes
