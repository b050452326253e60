"""Exactness in every program form: value and other gradients, and the compressed gradient against Pᵀ ∂W."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compact_programs import CASES, arguments

from jaxremat.compact import CompAct, projection
from jaxremat.compact.update import Projections, moved_weight, shrunk_weight
from jaxremat.compact.weight_tracer import group_key

only_w = lambda path, leaf: path == "w"


def setup(case, **options):
    params, x = arguments(case)
    compact = CompAct(case.loss, optax.sgd(1.0), select=only_w, **({"rank": 0.5} | options))
    return compact, compact.init(params, x), params, x


def close(actual, expected, tolerance):
    np.testing.assert_allclose(actual, expected, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("name", CASES)
def test_values_are_exact_and_gradients_those_of_the_projection(name):
    """Value, input gradient and other gradients are those of the plain loss; the compressed gradient is Pᵀ ∂W."""
    case = CASES[name]
    compact, state, params, x = setup(case)
    (compression,) = state.compressions
    assert compression.in_axes == case.in_axes
    uses = compact._compressed(state, (x,))[1]
    assert uses.layers[compression.leaf] == case.layers

    @jax.jit
    def measure(state, params, x):
        trainable = compact.trainable(state)
        ours = jax.value_and_grad(lambda t, x: compact.loss(t, state, x), (0, 1))(trainable, x)
        plain = jax.value_and_grad(case.loss, (0, 1))(params, x)
        projected = shrunk_weight(plain[1][0]["w"], compression, Projections(uses, compact._key(state.step)))
        return ours, plain, projected

    (value, (grads, by_input)), (expected, (full, full_by_input)), projected = measure(state, params, x)
    tolerance = 2e-2 if name == "cast" else 2e-5
    close(value, expected, 1e-6)
    close(grads["b"], full["b"], tolerance)
    close(by_input, full_by_input, tolerance)
    close(grads["w"], projected, tolerance)
    assert np.abs(projected).max() > 0


@pytest.mark.parametrize("name", ["plain", "heads in, mixed", "experts", "scan of scans", "stacked, indexed"])
def test_update_is_the_adjoint_of_the_projection(name):
    case = CASES[name]
    compact, state, params, x = setup(case)
    (compression,) = state.compressions
    projections = Projections(compact._compressed(state, (x,))[1], compact._key(state.step))
    small = jax.random.normal(jax.random.key(1), compact.trainable(state)["w"].shape)
    moved = moved_weight(jnp.zeros_like(params["w"]), small, compression, projections, scale=0.5, rate=0.0)
    left = jnp.vdot(moved, params["w"])
    right = 0.5 * jnp.vdot(small, shrunk_weight(params["w"], compression, projections))
    np.testing.assert_allclose(left, right, rtol=1e-4)


@pytest.mark.parametrize("name", ["plain", "scan", "own vjp"])
def test_same_under_jit_and_vmap(name):
    case = CASES[name]
    compact, state, _, x = setup(case)
    gradient = jax.grad(lambda t, x: compact.loss(t, state, x))
    eager, jitted = (f(compact.trainable(state), x) for f in (gradient, jax.jit(gradient)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), eager, jitted)
    batched = jax.vmap(gradient, (None, 0))(compact.trainable(state), jnp.stack([x, x]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b[1], rtol=1e-4, atol=1e-5), eager, batched)


def test_the_projection_is_the_public_one():
    """An explicit dense reference for the plain layout, with nothing of the library's own products in it."""
    case = CASES["plain"]
    compact, state, params, x = setup(case, rank=3)
    uses = compact._compressed(state, (x,))[1]
    matrix = projection(group_key(uses, compact._key(state.step), state.compressions[0].leaf), 8, 3)
    full = jax.grad(case.loss)(params, x)
    after, metrics = compact.step(state, x)
    np.testing.assert_allclose(after.params["w"], params["w"] - 0.25 * matrix @ (matrix.T @ full["w"]), rtol=1e-5)
    np.testing.assert_allclose(after.params["b"], params["b"] - full["b"], rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], case.loss(params, x), rtol=1e-6)


@pytest.mark.parametrize("name", ["plain", "transposed", "scan"])
def test_steps_are_unbiased_over_seeds(name):
    """Averaged over projections, a compressed SGD step is `scale` times the full one."""
    case = CASES[name]
    params, x = arguments(case)
    full = jax.grad(case.loss)(params, x)["w"]

    def move(step):
        compact, state, *_ = setup(case, refresh_every=1)
        return compact.step(dataclasses.replace(state, step=step), x)[0].params["w"]

    moves = jax.jit(jax.vmap(move))(jnp.arange(1500)) - params["w"]
    error = np.abs(np.asarray(moves).mean(0) + 0.25 * full).max()
    assert error <= 0.25 * np.abs(full).max() * 0.2


def test_layers_of_a_scan_have_projections_of_their_own():
    compact, state, params, x = setup(CASES["scan"])
    alone = lambda i: jnp.zeros_like(params["w"]).at[i].set(params["w"][0])
    projections = Projections(compact._compressed(state, (x,))[1], compact._key(state.step))
    first, second = (shrunk_weight(alone(i), state.compressions[0], projections)[i] for i in (0, 1))
    assert np.abs(first - second).max() > 0.1
