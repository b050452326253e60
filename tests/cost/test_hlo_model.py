"""The model of HLO: what is constant and what is equal."""

import time

import jax
import jax.numpy as jnp

from jaxremat.backends.cpu import CPU
from jaxremat.cost.hlo_model import lower


def squares(times):
    def loss(x):
        c = jax.lax.full((), 1.001)
        for _ in range(times):
            c = c * c
        return jnp.mean(x) * c

    return jax.make_jaxpr(loss)(jnp.ones((8, 8))).jaxpr


def test_chains_of_constants_take_linear_time():
    """A constant's identity does not grow with the expression: written out, 2**40 factors."""
    start = time.process_time()
    program = lower(squares(40), CPU)
    assert time.process_time() - start < 1.0
    assert sum(op.constant is not None and op.kind == "broadcast" for op in program.ops) >= 40


def test_equal_constant_expressions_are_one_operation():
    def twice(x):
        one, other = (jnp.float32(3) * jax.lax.full((), 2.0) for _ in range(2))
        return x * one + x * other

    program = lower(jax.make_jaxpr(twice)(jnp.ones(8)).jaxpr, CPU)
    products = [op for op in program.ops if op.kind == "mul" and op.constant is None]
    assert len(products) == 1
