"""A key exists where everything that is closed over is data: then the same key means the same program."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from jaxremat.planning.trace_key import Unknown, captured_by, key_of


def scaled(rate, table=None):
    return lambda x: x * rate if table is None else x @ table


def test_closures_over_equal_data_have_one_key_and_over_other_data_another():
    assert key_of(scaled(2.0)) == key_of(scaled(2.0)) != key_of(scaled(3.0))
    assert key_of(scaled((1, {"a": [2]}))) == key_of(scaled((1, {"a": [2]}))) != key_of(scaled((1, {"a": [3]})))
    assert key_of(scaled(1)) != key_of(scaled(1.0)) != key_of(scaled(True)), "types trace differently"


def test_arrays_count_by_identity_for_they_never_change():
    table = jnp.ones((2, 2))
    assert key_of(scaled(1, table)) == key_of(scaled(1, table)) != key_of(scaled(1, jnp.ones((2, 2))))


def test_partials_and_defaults_and_wrapped_functions_are_told_apart():
    def with_default(x, rate=1.0):
        return x * rate

    def with_another(rate):
        return functools.wraps(with_default)(lambda x: x * rate)

    assert key_of(functools.partial(with_default, rate=2)) == key_of(functools.partial(with_default, rate=2))
    assert key_of(functools.partial(with_default, rate=2)) != key_of(functools.partial(with_default, rate=3))
    wrapped = with_another(2)
    assert key_of(wrapped) == key_of(wrapped) != key_of(with_another(3))


@pytest.mark.parametrize(
    "held",
    [object(), np.ones(3), [np.ones(3)], type("Model", (), {})()],
    ids=["object", "array", "list of arrays", "model"],
)
def test_what_may_change_has_none(held):
    with pytest.raises(Unknown):
        key_of(scaled(held))


def test_a_function_that_closes_over_itself():
    def down(n):
        return n if n <= 0 else down(n - 1)

    assert key_of(down) == key_of(down)


def test_a_cell_that_is_not_filled_yet_has_none():
    def fun(x):
        return later(x)

    with pytest.raises(Unknown):
        key_of(fun)
    later = abs
    assert key_of(fun)


def test_arrays_that_are_closed_over_are_seen_in_trees_and_under_decorators():
    table = jnp.ones(2)
    bare = scaled(1, {"deep": [table]})
    assert captured_by(bare) == captured_by(functools.wraps(bare)(lambda x: x)) == [table]
    assert captured_by(abs) == []
