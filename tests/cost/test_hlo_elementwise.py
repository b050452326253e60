"""Element-wise equations as XLA's algebraic simplifier leaves them; compiled programs are asked in test_cpu_rules."""

import jax
import jax.numpy as jnp
import pytest

from jaxremat.backends.cpu import CPU
from jaxremat.backends.cuda import CUDA
from jaxremat.cost.fused import reachable
from jaxremat.cost.hlo_model import lower

X = jax.ShapeDtypeStruct((4, 6), jnp.float32)
ROW = jax.ShapeDtypeStruct((4, 1), jnp.float32)


def kinds(fun, *args, backend=CPU):
    """What is computed of arguments and read, in order; constants aside."""
    program = lower(jax.make_jaxpr(fun)(*args).jaxpr, backend)
    live = [program.ops[index] for index in reachable(program)]
    return [op.kind for op in live if op.kind != "input" and op.constant is None]


@pytest.mark.parametrize(
    "fun",
    [
        lambda x: x + 0.0,
        lambda x: x * 1.0,
        lambda x: 1.0 * x,
        lambda x: jnp.maximum(x, -jnp.inf),
        lambda x: jnp.where(x > 0, True, False) == (x > 0),
    ],
    ids=["plus nothing", "times one", "one times", "of nothing larger", "what is true where it is"],
)
def test_what_changes_nothing_is_not_computed(fun):
    assert kinds(fun, X) in ([], ["gt", "eq"])


@pytest.mark.parametrize(
    ("fun", "made"),
    [
        (jnp.square, ["mul"]),
        (lambda x: x**2, ["mul"]),
        (lambda x: x**3, ["mul", "mul"]),
        (lambda x: x**5, ["integer_pow"]),
        (lambda x: x / 2.0, ["mul"]),
        (lambda x: x - 0.5, ["sub"]),
    ],
    ids=["square", "power 2", "power 3", "power 5", "by a constant", "less a constant"],
)
def test_powers_and_quotients_become_products(fun, made):
    assert kinds(fun, X) == made


def test_a_quotient_of_rows_is_a_product_with_reciprocals_where_the_compiler_says_so():
    divided = lambda x, row: x / row
    assert kinds(divided, X, ROW, backend=CPU) == (
        ["div", "broadcast", "mul"] if CPU.spreads_reciprocals else ["broadcast", "div"]
    )
    assert kinds(divided, X, ROW, backend=CUDA)[-1] == ("mul" if CUDA.spreads_reciprocals else "div")


def test_constants_of_constants_are_constants():
    assert kinds(lambda x: x * (jnp.float32(2) * jnp.exp(jnp.float32(3))), X) == ["mul"]


def test_what_is_turned_and_then_narrowed_is_narrowed_first():
    assert kinds(lambda x: x.T.astype(jnp.bfloat16), X) == ["convert_element_type", "transpose"]


def test_a_sum_with_what_is_scattered_into_zeros_is_scattered_into():
    """The zeros are never made: the other summand is written into."""
    scattered = lambda x, y: jnp.zeros((4, 6)).at[1].add(y[0]) + x
    program = lower(jax.make_jaxpr(scattered)(X, X).jaxpr, CPU)
    (output,) = program.outputs
    assert program.ops[output].kind == "scatter-add" and program.ops[program.reads[output][0]].kind == "input"


def test_a_sum_of_two_that_are_scattered_into_zeros_stays_one():
    scattered = lambda x, y: jnp.zeros((4, 6)).at[1].add(y[0]) + jnp.zeros((4, 6)).at[x[0].astype(int)].add(y[0])
    ops = lower(jax.make_jaxpr(scattered)(X, X).jaxpr, CPU).ops
    assert [op.kind for op in ops].count("scatter-add") == 2 and ops[-1].kind == "add"
