"""What lowering knows of equations: one number for all that is equal, and how operands lie."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from jaxremat.cost.hlo_ops import Op, Templates, alone, bodies_of
from jaxremat.trace import jaxpr as jaxprs

X = jax.ShapeDtypeStruct((4, 6), jnp.float32)


def equations(fun, *args):
    return jaxprs.inline_calls(jax.make_jaxpr(fun)(*args)).eqns


def test_equal_equations_are_one_template_whatever_they_read():
    eqns = equations(lambda x: (jnp.sin(x), jnp.sin(x + x), jnp.cos(x)), X)
    sines = [eqn for eqn in eqns if eqn.primitive.name == "sin"]
    templates = Templates()
    first, second = (templates.facts[eqn].usual for eqn in sines)
    (cosine,) = (templates.facts[eqn].usual for eqn in eqns if eqn.primitive.name == "cos")
    assert first.identity == second.identity != cosine.identity
    assert templates.facts[sines[0]] is templates.facts[sines[0]]


def test_parameters_and_dtypes_tell_equations_apart():
    eqns = equations(lambda x: (x**2, x**3, x.astype(jnp.bfloat16) ** 3), X)
    templates = Templates()
    powers = [templates.facts[eqn].usual.identity for eqn in eqns if eqn.primitive.name == "integer_pow"]
    assert len(set(powers)) == len(powers) == 3


@pytest.mark.parametrize(("fun", "commutes"), [(jnp.add, True), (jnp.maximum, True), (jnp.subtract, False)])
def test_operands_may_change_places_where_order_does_not_matter(fun, commutes):
    (eqn,) = equations(fun, X, X)
    assert Templates().facts[eqn].usual.commutes == commutes


def test_only_what_is_written_into_counts_of_a_scan():
    """A carry that is read, one that is only written into, and what is stacked."""

    def body(carry, x):
        read, written = carry
        return (read + x.sum(), lax.dynamic_update_slice(written, x, (0,))), x * 2.0

    eqns = equations(lambda xs: lax.scan(body, (0.0, jnp.zeros(8)), xs), jnp.ones((3, 6)))
    (scan,) = (eqn for eqn in eqns if eqn.primitive.name == "scan")
    assert Templates().facts[scan].only_written == [1, 2]


def test_bodies_say_what_is_sliced_and_stacked():
    eqns = equations(lambda w, xs: lax.scan(lambda c, x: (c * w, c + x), 1.0, xs), 2.0, jnp.ones(3))
    (scan,) = (eqn for eqn in eqns if eqn.primitive.name == "scan")
    (body,) = bodies_of(scan)
    assert (body.own_inputs, body.own_outputs) == (2, 1) and body.has_stacks
    assert not alone(body.jaxpr).has_stacks
    assert Templates().facts[scan].with_bodies.runs == 3


def layout(fun, *shapes):
    (product,) = (eqn for eqn in equations(fun, *(jnp.ones(shape) for shape in shapes)) if "dot" in eqn.primitive.name)
    contracts = tuple(map(tuple, product.params["dimension_numbers"][0]))
    return Templates().facts[product].layout(contracts)


@pytest.mark.parametrize(
    ("equation", "shapes", "leads", "canonical", "rows"),
    [
        ("ij,jk->ik", [(4, 6), (6, 5)], (True, True), (True, True), True),
        ("ji,jk->ik", [(6, 4), (6, 5)], (True, True), (True, True), False),
        ("bij,bjk->bik", [(3, 4, 6), (3, 6, 5)], (True, True), (True, True), True),
        ("ibj,bjk->bik", [(4, 3, 6), (3, 6, 5)], (False, True), (False, True), True),
        ("ibj,bjk->bik", [(1, 3, 6), (3, 6, 5)], (True, True), (False, True), True),
        ("iaj,jbk->iabk", [(2, 3, 4), (4, 3, 2)], (True, True), (True, True), True),
        ("iaj,bkj->iabk", [(2, 3, 4), (3, 2, 4)], (True, True), (True, False), True),
        ("jia,jk->iak", [(4, 2, 3), (4, 5)], (True, True), (False, True), False),
    ],
)
def test_operands_lie_as_a_product_reads_them(equation, shapes, leads, canonical, rows):
    found = layout(lambda a, b: jnp.einsum(equation, a, b), *shapes)
    assert found.batch_leads == leads
    assert found.is_canonical == canonical
    assert found.contracts_rows == rows


def test_a_product_of_one_row_is_no_matrix():
    assert not layout(jnp.matmul, (1, 6), (6, 5)).is_matrix and layout(jnp.matmul, (2, 6), (6, 5)).is_matrix


def test_spread_constants_are_one_for_equal_numbers():
    templates = Templates()
    like = Op("broadcast", (4, 6), "float32", 96)
    assert templates.spread(like, "1.0").identity == templates.spread(like, "1.0").identity
    assert templates.spread(like, "1.0").identity != templates.spread(like, "2.0").identity
