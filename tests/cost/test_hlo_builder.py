"""Programs of operations under way."""

import jax
import jax.numpy as jnp

from jaxremat.backends.cpu import CPU
from jaxremat.cost.hlo_model import lower

X = jax.ShapeDtypeStruct((4, 6), jnp.float32)


def lowered(fun, *args):
    return lower(jax.make_jaxpr(fun)(*args).jaxpr, CPU)


def test_equations_are_those_of_the_program():
    program = lowered(lambda x: jnp.cos(jnp.sin(x)), X)
    assert [(op.kind, equation) for op, equation in zip(program.ops, program.equations)] == [
        ("input", -1),
        ("sin", 0),
        ("cos", 1),
    ]


def test_stacks_that_nobody_reads_are_not_held_by_their_loop():
    def loss(xs, read):
        carry, stacked = jax.lax.scan(lambda c, x: (c + x, jnp.sin(c)), xs[0], xs)
        return (carry, stacked) if read else carry

    loops = []
    for read in (True, False):
        program = lowered(lambda xs, read=read: loss(xs, read), jax.ShapeDtypeStruct((5, 8), jnp.float32))
        (loop,) = (index for index, op in enumerate(program.ops) if op.kind == "scan")
        loops.append(len(program.reads[loop]))
    assert loops[0] > loops[1]
