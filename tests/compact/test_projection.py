"""Random projections, and derivatives that go through them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxremat.compact.projection import compressed_shape, expand, lift, projection, rank_last, with_derivative


def array(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def test_the_outer_product_with_itself_is_the_identity_on_average():
    matrix = projection(jax.random.key(0), 8, 4000)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(8), atol=0.1)


def dense(left, variable):
    return left @ variable


def test_a_value_is_kept_and_its_derivative_is_of_the_product():
    value, left, variable = array(5, 3), array(5, 2, seed=1), jnp.zeros((2, 3))
    added = lambda value, left, variable: value + left @ variable
    ours = functools.partial(with_derivative, dense)
    np.testing.assert_array_equal(ours(value, left, variable), value)
    loss = lambda f: lambda value, variable: jnp.sum(f(value, left, variable) ** 3)
    for a, b in zip(jax.grad(loss(ours), (0, 1))(value, variable), jax.grad(loss(added), (0, 1))(value, variable)):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_nothing_is_multiplied_forward():
    jaxpr = jax.make_jaxpr(functools.partial(with_derivative, dense))(array(5, 3), array(5, 2), jnp.zeros((2, 3)))
    assert "dot_general" not in [eqn.primitive.name for eqn in jaxpr.eqns]


def draw(key):
    return projection(jax.random.wrap_key_data(key), 4, 2)


def taken_back(matrix, variable):
    return expand((0,), (4, 3), matrix, variable.T)


def test_the_cotangent_of_a_weight_reaches_its_variable_through_the_projection():
    weight, variable, key = array(4, 3), jnp.zeros((2, 3)), jax.random.key_data(jax.random.key(3))
    loss = lambda variable: jnp.sum(lift(taken_back, draw, weight, variable, key) ** 2)
    np.testing.assert_allclose(jax.grad(loss)(variable), draw(key).T @ (2 * weight), rtol=1e-5)


@pytest.mark.parametrize(
    ("shape", "in_axes", "compressed"),
    [((8, 3), (0,), (2, 3)), ((3, 8), (1,), (3, 2)), ((4, 5, 3), (0, 1), (2, 3)), ((3, 4, 5), (1, 2), (3, 2))],
)
def test_the_first_input_axis_becomes_the_rank(shape, in_axes, compressed):
    assert compressed_shape(shape, in_axes, 2) == compressed


@pytest.mark.parametrize(
    ("shape", "in_axes"), [((8, 3), (0,)), ((3, 8), (1,)), ((4, 5, 3), (0, 1)), ((4, 3, 5), (0, 2))]
)
def test_taken_back_is_the_product_of_matrices(shape, in_axes):
    """Seen as a matrix of inputs and outputs, a weight is the projection times its variable."""
    width = int(np.prod([shape[axis] for axis in in_axes]))
    matrix, small = array(width, 2), array(*compressed_shape(shape, in_axes, 2), seed=1)
    found = expand(in_axes, shape, matrix, rank_last(small, in_axes))
    assert found.shape == shape
    as_matrix = np.moveaxis(np.asarray(found), in_axes, range(len(in_axes))).reshape(width, -1)
    variables = np.moveaxis(np.asarray(small), in_axes[0], 0).reshape(2, -1)
    np.testing.assert_allclose(as_matrix, matrix @ variables, rtol=1e-4, atol=1e-5)
