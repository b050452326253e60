"""Which values a gradient passes through, against what JAX's own differentiation finds."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from joint_programs import array

from jaxremat.loops.find import find
from jaxremat.trace import activity
from jaxremat.trace import jaxpr as jaxprs
from jaxremat.trace.primal import read_primal

X = array(4)


def flags(fun, args, inputs, outputs=None):
    """(perturbed outputs, wanted inputs) of a function."""
    jaxpr = jaxprs.inline_calls(jaxprs.read(fun, *args).jaxpr)
    perturbed = activity.perturbed_vars(jaxpr, inputs)
    wanted = activity.wanted_vars(jaxpr, outputs or [True] * len(jaxpr.outvars), perturbed)
    in_set = lambda atoms, chosen: [not isinstance(a, jax.extend.core.Literal) and a in chosen for a in atoms]
    return in_set(jaxpr.outvars, perturbed), in_set(jaxpr.invars, wanted)


def test_what_changes_with_an_input_and_what_reaches_an_output():
    fun = lambda x, y, z: (jnp.sin(x) * y, y + 1, jnp.argmax(x), lax.stop_gradient(x) + z)
    assert flags(fun, (X, X, X), [True, False, False]) == ([True, False, False, False], [True, False, False])
    assert flags(fun, (X, X, X), [True, True, True]) == ([True, True, False, True], [True, True, True])
    only_second = [False, True, False, False]
    assert flags(fun, (X, X, X), [True, True, True], only_second)[1] == [False, True, False]


def test_branches_are_joined():
    fun = lambda x, y: lax.cond(x[0] > 0, lambda a, b: (a, a), lambda a, b: (a, b), x, y)
    assert flags(fun, (X, X), [False, True])[0] == [False, True]
    assert flags(fun, (X, X), [True, False])[0] == [True, True]


def test_integers_stop_a_gradient():
    fun = lambda x: (x.astype(jnp.int32).astype(jnp.float32), jnp.where(x > 0, 1.0, 2.0))
    assert flags(fun, (X,), [True])[0] == [False, False]


def test_loops_are_followed_until_nothing_changes():
    """What enters one carry reaches the third only after three iterations."""

    def fun(x, y):
        step = lambda c, _: ((y, c[0], c[1], c[3]), c[2])
        (_, _, third, fourth), stacked = lax.scan(step, (x, x, x, x), None, length=5)
        return third, fourth, stacked

    assert flags(fun, (X, X), [False, True])[0] == [True, False, True]
    only_fourth = [False, True, False]
    assert flags(fun, (X, X), [True, True], only_fourth)[1] == [True, False]


def test_while_loops_carry_on():
    fun = lambda x, y: lax.while_loop(lambda s: s[2] < 3, lambda s: (s[1], s[0], s[2] + 1), (x, y, 0))[:2]
    assert flags(fun, (X, X), [True, False])[0] == [True, True]


def test_what_is_not_understood_passes_everything_on():
    def fun(x, y):
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return jax.pure_callback(lambda a, b: (a, b), (shape, shape), x, y)

    assert flags(fun, (X, X), [True, False])[0] == [True, True]


def scanning(x, w, length=3):
    return lax.scan(lambda c, _: (jnp.tanh(c @ w), jnp.sum(c)), x, None, length=length)


def loops_of(fun, *args, argnums=0):
    return find(read_primal(fun, args, argnums, False))


@pytest.mark.parametrize(
    "fun,number",
    [
        (lambda x: scanning(x, jnp.eye(4))[0], 1),
        (lambda x: scanning(lax.stop_gradient(x), jnp.eye(4))[0] * x, 0),
        (lambda x: (scanning(x, jnp.eye(4))[0] > 0) * x, 0),
        (lambda x: scanning(x, jnp.eye(4), length=0)[0], 0),
        (lambda x: scanning(scanning(x, jnp.eye(4))[0], jnp.eye(4))[0], 2),
    ],
    ids=["active", "not perturbed", "not wanted", "empty", "two"],
)
def test_loops_that_a_gradient_passes_through(fun, number):
    assert len(loops_of(fun, X)) == number


def test_loops_with_effects_are_left_alone():
    def fun(x):
        def body(c, _):
            jax.debug.callback(lambda v: None, c)
            return jnp.sin(c), None

        return lax.scan(body, x, None, length=3)[0]

    assert loops_of(fun, X) == ()


def test_bodies_that_call_other_functions_are_two():
    """A fingerprint does not see which function a callback calls; what is shared between loops must."""

    def calling(run):
        def step(c, _):
            shape = jax.ShapeDtypeStruct(c.shape, c.dtype)
            return jnp.sin(c) * jax.pure_callback(run, shape, lax.stop_gradient(c)), None

        return lambda x: lax.scan(step, x, None, length=3)[0]

    first, second = loops_of(lambda x: calling(lambda v: v)(calling(lambda v: 2 * v)(x)), X)
    assert first.body.primal.fingerprint == second.body.primal.fingerprint
    assert first.body is not second.body
    step = calling(lambda v: v)
    first, second = loops_of(lambda x: step(step(x)), X)
    assert first.body is second.body
