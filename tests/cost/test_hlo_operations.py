"""Operations one after the other: equal ones are merged, never across a barrier."""

import jax
import jax.numpy as jnp
import pytest

from jaxremat.backends.cpu import CPU
from jaxremat.cost.hlo_model import lower
from jaxremat.cost.hlo_operations import Operations
from jaxremat.cost.hlo_ops import Op, Templates

X = jax.ShapeDtypeStruct((4, 6), jnp.float32)


def lowered(fun, *args):
    return lower(jax.make_jaxpr(fun)(*args).jaxpr, CPU)


def number(program, kind):
    return sum(op.kind == kind for op in program.ops)


def test_equal_operations_are_one():
    assert number(lowered(lambda x, y: (jnp.sin(x) * y, jnp.sin(x) + y), X, X), "sin") == 1


@pytest.mark.parametrize(("fun", "times"), [(lambda x, y: (x + y) * (y + x), 1), (lambda x, y: (x - y) * (y - x), 2)])
def test_operands_change_places_where_order_does_not_matter(fun, times):
    assert number(lowered(fun, X, X), "add" if times == 1 else "sub") == times


def test_nothing_is_merged_across_a_barrier():
    again = lambda x: jnp.sin(x) + jnp.sin(jax.lax.optimization_barrier(x))
    assert number(lowered(again, X), "sin") == 2


def test_an_expression_has_one_identity_that_does_not_grow():
    builder = Operations(CPU, Templates())
    deep = builder.expression(("exp", "1.0"))
    for _ in range(50):
        deep = builder.expression(("mul", (deep, deep)))
    assert deep == builder.expression(("mul", (("expression", 49), ("expression", 49)))) and len(str(deep)) < 30


def test_an_operand_of_another_size_is_spread_once():
    program = lowered(lambda x, row: x * row + row, X, jax.ShapeDtypeStruct((1, 6), jnp.float32))
    assert number(program, "broadcast") == 1


def test_constants_are_one_whoever_reads_them():
    builder = Operations(CPU, Templates())
    template = builder.templates.spread(Op("broadcast", (4,), "float32", 16), "1.0")
    assert builder.constant(template) == builder.constant(template) and len(builder.ops) == 1
