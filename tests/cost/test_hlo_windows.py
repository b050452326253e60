"""Windows that slide over arrays, lowered; compiled programs are asked in test_cpu_rules."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from jaxremat.backends.cpu import CPU
from jaxremat.cost.fused import reachable
from jaxremat.cost.hlo_model import lower

IMAGE = jax.ShapeDtypeStruct((2, 8, 8, 4), jnp.float32)


def live(fun, *args, backend=CPU):
    """The operations that are read."""
    program = lower(jax.make_jaxpr(fun)(*args).jaxpr, backend)
    return [program.ops[index] for index in reachable(program) if program.ops[index].kind != "input"]


def summed(x, size=2, stride=2):
    return lax.reduce_window(x, 0.0, lax.add, (1, size, size, 1), (1, stride, stride, 1), "VALID")


@pytest.mark.parametrize(("size", "stride", "taken"), [(2, 2, True), (2, 1, False), (3, 2, False), (1, 1, False)])
def test_a_library_takes_windows_that_lie_side_by_side(size, stride, taken):
    windows = [op for op in live(lambda x: summed(x, size, stride), IMAGE) if "window" in op.kind]
    assert [op.in_library for op in windows] == [taken]


def test_zeros_around_what_is_summed_are_part_of_the_window():
    padded = lambda x: summed(lax.pad(x, 0.0, [(0, 0, 0), (1, 1, 0), (1, 1, 0), (0, 0, 0)]))
    assert "pad" not in [op.kind for op in live(padded, IMAGE)]
    ones = lambda x: summed(lax.pad(x, 1.0, [(0, 0, 0), (1, 1, 0), (1, 1, 0), (0, 0, 0)]))
    assert "pad" in [op.kind for op in live(ones, IMAGE)]


def test_a_cpu_searches_the_maxima_again_for_their_gradient():
    """With one array of indices for each axis."""
    pooled = lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    back = lambda x, ct: jax.vjp(pooled, x)[1](ct)[0]
    ops = live(back, IMAGE, jax.ShapeDtypeStruct((2, 4, 4, 4), jnp.float32))
    (searched,) = (op for op in ops if op.kind == "reduce_window" and op.dtype == "int32")
    assert searched.shape == (2, 4, 4, 4, 4) and CPU.expands_searches
