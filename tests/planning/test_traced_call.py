"""Calls of decorated functions: what is traced, and what their program depends on."""

import jax
import jax.numpy as jnp
import pytest

from jaxremat.planning.traced_call import calls_of, first_that_traces

W = jnp.ones((3, 3))


def scaled(w, number, power=2):
    return jnp.sum(w * number) ** power


def repeated(w, number):
    for _ in range(number):
        w = jnp.sin(w)
    return w.sum()


def calls(fun, *args, **kwargs):
    return calls_of(fun, args, kwargs, None)


def test_numbers_are_traced_where_the_function_lets_them():
    call, primal = first_that_traces(calls(scaled, W, 3.0), False)
    assert len(primal.jaxpr.invars) == 2 and [x.shape for x in map(jnp.asarray, call.arrays)] == [(3, 3), ()]


def test_numbers_that_a_function_counts_with_are_static():
    call, primal = first_that_traces(calls(repeated, W, 4), False)
    assert len(primal.jaxpr.invars) == 1 and call.arrays[0] is W
    assert call.of_arrays(W) == repeated(W, 4)


def test_one_way_is_enough_where_there_are_no_numbers():
    assert len(calls(lambda w: w.sum(), W)) == 1 and len(calls(scaled, W, 3.0)) == 2


@pytest.mark.parametrize(
    ("other", "is_equal"),
    [((scaled, W, 5.0), True), ((scaled, jnp.ones((3, 4)), 3.0), False), ((repeated, W, 3.0), False)],
    ids=["another number", "another shape", "another function"],
)
def test_traced_leaves_count_by_their_types(other, is_equal):
    fun, *args = other
    assert (calls(scaled, W, 3.0)[0].key == calls(fun, *args)[0].key) == is_equal


def test_static_leaves_count_by_their_values():
    static = [calls(repeated, W, number)[-1].key for number in (3, 3, 4)]
    assert static[0] == static[1] != static[2] and None not in static


def test_what_cannot_be_hashed_has_no_key():
    assert calls(lambda w, words: w.sum(), W, {"a": bytearray(b"x")})[0].key is None


def test_arrays_that_a_function_holds_are_seen():
    held = jnp.arange(3.0)
    closing = lambda w: jnp.sum(w @ held)
    (call,) = calls(closing, W)
    assert call.holds_all(call.primal(False))


def test_an_integer_that_is_traced_keeps_no_gradient_of_it():
    _, primal = first_that_traces(calls(scaled, W, 3), False)
    assert all(jax.numpy.issubdtype(primal.jaxpr.invars[i].aval.dtype, jnp.inexact) for i in primal.wrt)
