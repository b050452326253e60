"""Normalisations over rows: which operations lie on both ways, and what one kernel then writes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fused_programs import H200, program_of, written

from jaxremat.cost.diamonds import diamonds
from jaxremat.cost.fused import reachable, readers_of
from jaxremat.cost.hlo_model import lower

X, W = jax.ShapeDtypeStruct((2048, 1024), jnp.float32), jax.ShapeDtypeStruct((1024, 1024), jnp.float32)


def found(program):
    return list(diamonds(program, readers_of(program, reachable(program))))


def of(fun, *args):
    program = lower(jax.make_jaxpr(fun)(*args).jaxpr, H200.backend)
    return [sorted(program.ops[index].kind for index in diamond.inside) for diamond in found(program)]


def normalised(rows, columns, more=()):
    """x, its exponential, their sums, spread again, and what is divided by those."""
    shape = (rows, columns)
    return program_of(
        ("input", shape),
        ("exp", shape, 0),
        ("reduce", (rows,), 1),
        ("broadcast", shape, 2),
        ("div", shape, 1, 3),
        *more,
    )


def test_a_diamond_goes_over_the_sum_of_a_row():
    (diamond,) = found(normalised(16, 64))
    assert diamond.root == 4 and diamond.inside == {2, 3}


@pytest.mark.parametrize(
    "program",
    [
        normalised(16, 2**15),
        normalised(16, 64, [("neg", (16,), 2)]),
        normalised(16, 64, [("neg", (16, 64), 3)]),
        program_of(("input", (16, 64)), ("reduce", (64,), 0), ("broadcast", (16, 64), 1), ("div", (16, 64), 0, 2)),
    ],
    ids=["too long a row", "read sums", "read spread sums", "sums of columns"],
)
def test_what_is_no_diamond(program):
    outputs = [index for index in range(len(program.ops)) if not any(index in reads for reads in program.reads)]
    assert not found(program_of(*_operations(program), outputs=outputs))


def _operations(program):
    return [(op.kind, op.shape, *reads) for op, reads in zip(program.ops, program.reads)]


def test_a_softmax_is_two_and_a_norm_is_one():
    assert len(of(jax.nn.softmax, X)) == 2
    (norm,) = of(lambda x: x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True)), X)
    assert norm.count("reduce") == norm.count("broadcast") == 1 and "rsqrt" in norm


@pytest.mark.parametrize("columns", [26214, 26215, 32768, 32769])
def test_rows_are_padded_to_powers_of_two_before_they_have_to_fit(columns):
    padded = 1 << int(np.ceil(np.log2(columns)))
    assert bool(found(normalised(2, columns))) == (padded <= 0.4 * 65536)


def test_a_softmax_is_one_kernel_beside_its_sums():
    names = written(lambda x, w: jax.nn.softmax(x @ w) @ w, X, W)
    assert "exp" not in names and names.count("dot_general") == 2 and "div" in names


def test_what_is_divided_by_the_sum_of_its_row_is_not_written():
    """Compiled for an H200, this is one kernel over the rows."""

    def shares(x):
        entries = jnp.tanh(x)
        return entries / jnp.sum(entries, -1, keepdims=True)

    assert "tanh" not in written(shares, X)


def test_rows_of_nothing_are_lowered_like_others():
    assert written(jax.nn.softmax, jax.ShapeDtypeStruct((4, 0), jnp.float32))


def test_a_softmax_leaves_its_exponentials_to_its_gradient():
    """The kernel over its rows ends with them: compiled for an H200, they are written once and read three times."""

    def weights(scores):
        rows, columns = (jax.lax.broadcasted_iota(jnp.float32, scores.shape, axis) for axis in (0, 1))
        scaled = scores.astype(jnp.float32) / 8.0
        return jax.nn.softmax(jnp.where(rows >= columns, scaled, -1e9)).astype(jnp.bfloat16)

    def fun(x, w, ct):
        mixed, back = jax.vjp(weights, x @ w)
        return mixed, back(ct)[0]

    half = lambda *dims: jax.ShapeDtypeStruct(dims, jnp.bfloat16)
    names = written(fun, half(16384, 1024), half(1024, 1024), half(16384, 1024))
    assert names.count("exp") == 1 and names.count("dot_general") == 1
