"""Whether arguments and programs are the planned ones, and where they differ."""

import types

import jax
import jax.numpy as jnp
import pytest

from jaxremat.base.errors import PlanMismatchError
from jaxremat.planning.signature import check_program, planned_call, signature_of
from jaxremat.trace.fingerprint import describe
from jaxremat.trace.primal import read_primal

W, X = jax.ShapeDtypeStruct((4, 4), jnp.float32), jax.ShapeDtypeStruct((2, 4), jnp.bfloat16)


def decided(args, fun=lambda w, x: jnp.sum(x @ w)):
    return types.SimpleNamespace(
        fingerprint=read_primal(fun, args, 0, False).fingerprint, signature=signature_of(args), argnums=0
    )


def test_a_signature_names_every_leaf_with_its_path():
    assert signature_of(({"params": {"w": W}}, [X, 3.0])) == (
        "0/params/w float32[4,4]",
        "1/0 bfloat16[2,4]",
        "1/1 float32[]",
    )


def test_a_call_with_the_planned_arrays_is_taken():
    call = planned_call(decided((W, X)), (jnp.ones((4, 4)), jnp.ones((2, 4), jnp.bfloat16)), {})
    assert [array.shape for array in call.arrays] == [(4, 4), (2, 4)]


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ((jnp.ones((4, 4)), jnp.ones((3, 4), jnp.bfloat16)), r"planned 1 bfloat16\[2,4\], given 1 bfloat16\[3,4\]"),
        ((jnp.ones((4, 4)), jnp.ones((2, 4))), r"given 1 float32\[2,4\]"),
        ((jnp.ones((4, 4)),), "planned 2 arrays, given 1"),
    ],
)
def test_other_arrays_are_refused_with_the_difference(args, told):
    with pytest.raises(PlanMismatchError, match=told):
        planned_call(decided((W, X)), args, {})


def program(fun):
    return read_primal(fun, (W, X), 0, False)


def test_programs_part_at_a_line_that_is_told():
    planned = lambda w, x: jnp.sum(jnp.tanh(x @ w))
    given = program(lambda w, x: jnp.sum(jnp.sin(x @ w)))
    listing = describe(program(planned).jaxpr)
    check_program(decided((W, X), planned), program(planned), listing)
    with pytest.raises(PlanMismatchError, match=r"part at line \d+ of .* Planned: .*tanh.* Given: .*sin"):
        check_program(decided((W, X), planned), given, listing)


def test_a_program_that_goes_on_is_told_where_the_other_ends():
    planned, longer = (lambda w, x: x @ w), (lambda w, x: jnp.sum(x @ w))
    with pytest.raises(PlanMismatchError, match="part at line"):
        check_program(decided((W, X), planned), program(longer), describe(program(planned).jaxpr))


def test_other_differentiated_arguments_are_another_program():
    fun = lambda w, x: jnp.sum(x @ w)
    other = read_primal(fun, (W, X), 1, False)
    with pytest.raises(PlanMismatchError, match="other arguments are differentiated"):
        check_program(decided((W, X), fun), other, describe(program(fun).jaxpr))
