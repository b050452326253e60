"""Updates taken back to full weights, layer by layer, against the products as they are written."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxremat.compact.projection import compressed_shape, projection
from jaxremat.compact.selection import Compression
from jaxremat.compact.update import Projections, drawn_late, moved_weight, shrunk_weight
from jaxremat.compact.weight_tracer import Uses

RANK = 3


def array(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def question(shape, in_axes, layers):
    """(weight, variable, its compression, its projections): a weight that no other shares a projection with."""
    compression = Compression(0, "w", shape, in_axes, RANK)
    uses = Uses(in_axes={0: in_axes}, group={0: 0}, layers={0: layers})
    small = list(compressed_shape(shape, in_axes, RANK))
    return array(*shape), array(*small, seed=1), compression, Projections(uses, jax.random.key(5))


CASES = [((8, 4), (0,), ()), ((4, 8), (1,), ()), ((2, 8, 4), (1,), (0,)), ((2, 4, 2, 5), (1, 2), (0,))]


@pytest.mark.parametrize(("shape", "in_axes", "layers"), CASES)
def test_a_weight_moves_by_its_projection_times_the_update(shape, in_axes, layers):
    weight, variable, compression, projections = question(shape, in_axes, layers)
    view = projections.view(compression)
    matrices, variables = view.full(weight), view.small(variable)
    moved = moved_weight(weight, variable, compression, projections, scale=0.5, rate=-0.1)
    assert moved.shape == weight.shape and moved.dtype == weight.dtype
    for i, matrix in enumerate(view.full(moved)):
        drawn = projection(projections.of(view, i), matrix.shape[0], RANK)
        np.testing.assert_allclose(matrix, 0.9 * matrices[i] + 0.5 * drawn @ variables[i], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("shape", "in_axes", "layers"), CASES)
def test_a_shrunk_weight_has_the_shape_of_its_variable(shape, in_axes, layers):
    weight, variable, compression, projections = question(shape, in_axes, layers)
    view, shrunk = projections.view(compression), shrunk_weight(weight, compression, projections)
    assert shrunk.shape == variable.shape
    for i, small in enumerate(view.small(shrunk)):
        matrix = view.full(weight)[i]
        drawn = projection(projections.of(view, i), matrix.shape[0], RANK)
        np.testing.assert_allclose(small, drawn.T @ matrix, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("shape", "in_axes", "layers"), CASES)
def test_views_put_back_what_they_took(shape, in_axes, layers):
    weight, variable, compression, projections = question(shape, in_axes, layers)
    view = projections.view(compression)
    np.testing.assert_array_equal(view.restored(view.full(weight)), weight)
    np.testing.assert_array_equal(view.restored_small(view.small(variable)), variable)


def test_a_late_key_draws_the_same():
    key, arrays = drawn_late(jax.random.key(1), [jnp.ones(3)])
    assert jax.random.normal(key) == jax.random.normal(jax.random.key(1)) and arrays[0].sum() == 3
    late = jax.make_jaxpr(lambda x: jax.random.normal(drawn_late(jax.random.key(1), [x])[0]))(jnp.ones(3))
    assert "optimization_barrier" in [eqn.primitive.name for eqn in late.eqns]
