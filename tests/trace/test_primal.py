"""What cannot be differentiated is told before anything is traced further, with what to do."""

import jax
import jax.numpy as jnp
import pytest
from joint_programs import array

import jaxremat
from jaxremat.base.errors import ArgumentError
from jaxremat.trace.joint import trace_joint
from jaxremat.trace.primal import read_primal

X = array(3, 4)


@pytest.mark.parametrize("argnums", [2, -3, (), (0, 5)])
def test_argnums_out_of_range(argnums):
    with pytest.raises(ArgumentError, match=r"must name arguments 0\.\.1"):
        trace_joint(lambda x, y: jnp.sum(x * y), X, X, argnums=argnums)


def test_a_call_without_arguments():
    with pytest.raises(ArgumentError, match="no argument is given by position"):
        jaxremat.plan(lambda x: jnp.sum(x), budget=1.0)


@pytest.mark.parametrize("leaf,dtype", [(jnp.int32(2), "int32"), (X > 0, "bool"), (jax.random.key(0), "key<fry>")])
def test_arguments_without_a_gradient(leaf, dtype):
    with pytest.raises(ArgumentError, match=f"argument 1 holds a leaf of dtype {dtype}"):
        trace_joint(lambda x, y: jnp.sum(x), X, {"deep": [X, leaf]}, argnums=(0, 1))


def test_arguments_without_any_array():
    with pytest.raises(ArgumentError, match="there is nothing to differentiate"):
        trace_joint(lambda x, y: jnp.sum(x), X, {"none": None, "empty": ()}, argnums=1)


@pytest.mark.parametrize(
    "fun,told",
    [(jnp.argmax, "int32"), (lambda x: (x > 0, jnp.int8(1)), "bool, int8"), (lambda x: None, "nothing")],
)
def test_results_without_a_gradient(fun, told):
    with pytest.raises(ArgumentError, match=f"returns only {told}: there is nothing to differentiate"):
        trace_joint(fun, X)


def test_auxiliary_data_alone_cannot_be_differentiated():
    with pytest.raises(ArgumentError, match="nothing to differentiate"):
        trace_joint(lambda x: (jnp.argmax(x), jnp.sum(x)), X, has_aux=True)


@pytest.mark.parametrize("result", [lambda x: jnp.sum(x), lambda x: (x, x, x), lambda x: [x, x]])
def test_auxiliary_data_need_a_pair(result):
    with pytest.raises(ArgumentError, match="pair"):
        trace_joint(result, X, has_aux=True)


def test_what_may_have_no_gradient_is_read_all_the_same():
    primal = read_primal(lambda n, x: (n + 1, x > 0), (jnp.int32(1), X), None, False)
    assert primal.wrt == (1,) and primal.cotangents_of == ()


def test_the_public_entrance_refuses_alike():
    with pytest.raises(jaxremat.ArgumentError, match="nothing to differentiate"):
        jaxremat.trace(jnp.argmax, X)
    with pytest.raises(jaxremat.ArgumentError, match=r"0\.\.0"):
        jaxremat.trace(jnp.sum, X, argnums=1)
    assert issubclass(jaxremat.ArgumentError, ValueError)
