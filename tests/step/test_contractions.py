"""Contractions that are written the other way around, where a transpose is all that reads them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxremat.step.contractions import turned_contractions
from jaxremat.trace import jaxpr as jaxprs


def names(jaxpr):
    return [eqn.primitive.name for eqn in jaxpr.eqns]


def turned(fun, *shapes):
    args = [jnp.sin(jnp.arange(np.prod(shape), dtype=jnp.float32)).reshape(shape) for shape in shapes]
    before = jax.make_jaxpr(fun)(*args)
    after = turned_contractions(before)
    for expected, found in zip(jaxprs.evaluate(before, args), jaxprs.evaluate(after, args), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    return names(after)


def test_transpose_of_a_product_is_the_product_of_its_operands_in_the_other_order():
    assert turned(lambda a, b: (a @ b).T, (3, 4), (4, 5)) == ["dot_general"]


def test_dimensions_of_the_batch_stay_in_front():
    fun = lambda a, b: jnp.swapaxes(jnp.einsum("bij,bjkl->bikl", a, b), 1, 2)
    swapped = lambda a, b: jnp.transpose(jnp.einsum("bij,bjkl->bikl", a, b), (0, 2, 3, 1))
    assert turned(swapped, (2, 3, 4), (2, 4, 5, 6)).count("transpose") == 0
    assert turned(fun, (2, 3, 4), (2, 4, 5, 6)).count("transpose") >= 1  # only part of the right operand moves


def test_precision_of_each_operand_goes_with_it():
    precision = (jax.lax.Precision.HIGHEST, jax.lax.Precision.DEFAULT)
    jaxpr = jax.make_jaxpr(lambda a, b: jax.lax.dot(a, b, precision=precision).T)(jnp.ones((3, 4)), jnp.ones((4, 5)))
    assert turned_contractions(jaxpr).eqns[0].params["precision"] == precision[::-1]


@pytest.mark.parametrize(
    "fun", [lambda a, b: ((a @ b).T, a @ b + 1.0), lambda a, b: (lambda c: (c.T, c))(a @ b)], ids=["again", "returned"]
)
def test_what_others_read_too_stays(fun):
    shared = lambda a, b: (lambda c: (c.T, c + 1.0))(a @ b)
    assert turned(shared, (3, 4), (4, 5)).count("transpose") == 1
    assert turned(fun, (3, 4), (4, 5)).count("dot_general") >= 1
