"""The model of HLO: what is constant and what is equal."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from put_together import emitted_program

from jaxremat.backends.cpu import CPU
from jaxremat.backends.devices import resolve_target
from jaxremat.cost.hlo_model import lower, lower_listing
from jaxremat.cost.hlo_ops import Templates
from jaxremat.cost.pricing import price
from jaxremat.emit.scheduled import put_script
from jaxremat.emit.script import write_script
from jaxremat.graph.scheduled import schedule_program
from jaxremat.solvers.mincut.assemble import assemble_parts
from jaxremat.trace.joint import trace_joint
from jaxremat.trace.listing import Listing, listing_of

H200 = resolve_target("h200").backend


def squares(times):
    def loss(x):
        c = jax.lax.full((), 1.001)
        for _ in range(times):
            c = c * c
        return jnp.mean(x) * c

    return jax.make_jaxpr(loss)(jnp.ones((8, 8))).jaxpr


def controlled(times):
    """Steps of a solver of which each is as long as the one before allows."""

    def loss(x):
        now, step = jnp.float32(0), jnp.float32(0.1)
        for _ in range(times):
            x = x + step * jnp.tanh(x) * jnp.cos(now)
            now, step = now + step, step * jnp.where(now > 1, 0.9, 1.1)
        return jnp.mean(x)

    return jax.make_jaxpr(loss)(jnp.ones((8, 8))).jaxpr


def rotary(times):
    """Tables of angles, which each layer makes anew."""

    def loss(x):
        for _ in range(times):
            angles = jnp.arange(8.0)[:, None] / 10000.0 ** (jnp.arange(8.0)[None] / 8)
            x = x * jnp.cos(angles) + x[:, ::-1] * jnp.sin(angles)
        return jnp.mean(x)

    return jax.make_jaxpr(loss)(jnp.ones((8, 8))).jaxpr


def recurrence(times):
    def loss(x):
        a, b = jax.lax.full((), 1.0), jax.lax.full((), 0.5)
        for _ in range(times):
            a, b = b * a - a * a, a * b + b * b
            x = jnp.tanh(x * a + b)
        return jnp.mean(x)

    return jax.make_jaxpr(loss)(jnp.ones((8, 8))).jaxpr


@pytest.mark.parametrize("chain", [squares, controlled, rotary, recurrence], ids=lambda chain: chain.__name__)
def test_twice_as_long_a_chain_is_at_most_twice_as_many_operations(chain):
    short, long = (len(lower(chain(times), CPU).ops) for times in (20, 40))
    assert short < long <= 2 * short


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


def operations(program):
    """What the operations of a program do and read, and where they come from."""
    does = [(op.kind, op.shape, op.dtype, op.size_bytes, op.constant, op.flops) for op in program.ops]
    return list(zip(does, program.reads, program.equations, strict=True)), program.outputs, program.takes_over


def test_a_script_is_lowered_as_the_program_that_it_becomes():
    def loss(ws, x):
        for w in ws:
            x = jax.nn.softmax(jnp.tanh(x @ w) * 0.5) + x
        carry, stacked = jax.lax.scan(lambda c, w: (jnp.sin(c) @ w, c), x, jnp.stack(ws))
        return jnp.mean(carry**2) + jnp.sum(stacked[0])

    shapes = [jax.ShapeDtypeStruct((16, 16), jnp.float32)] * 3, jax.ShapeDtypeStruct((8, 16), jnp.float32)
    joint = trace_joint(loss, *shapes)
    graph, templates, begun = price(joint), Templates(), {}
    for every in (1, 2, 3, 2):
        kept = np.arange(graph.num_values) % every == 0
        steps, start = assemble_parts(graph, kept)
        script = write_script(joint, schedule_program(graph, steps, backward_start=start))
        listing = Listing(joint.jaxpr)
        listing.outputs = put_script(listing, joint, script)
        expected = operations(lower(emitted_program(joint, script), CPU))
        assert operations(lower_listing(listing, CPU, templates)) == expected
        assert operations(lower_listing(listing, CPU, templates, script.forward_lines, begun)) == expected


def test_a_beginning_serves_no_program_that_reads_its_results_more_often():
    """A transpose of a product that nothing else reads is that product, its operands in each other's place."""

    def program(number):
        def fun(x, w):
            y = x @ w
            return (y.T * 2.0, *(y for _ in range(number)))

        return jax.make_jaxpr(fun)(jnp.ones((8, 4)), jnp.ones((4, 16))).jaxpr

    jaxpr = program(1)
    templates, begun = Templates(), {}
    lowered = []
    for outputs in (jaxpr.outvars[:1], jaxpr.outvars, jaxpr.outvars[:1]):
        listing, number = listing_of(jaxpr)
        listing.outputs = [number[var] for var in outputs]
        lowered.append(lower_listing(listing, H200, templates, 2, begun))
        assert operations(lowered[-1]) == operations(lower_listing(listing, H200, templates))
    kinds = [[op.kind for op in each.ops] for each in lowered]
    assert "transpose" not in kinds[0] and "transpose" in kinds[1] and kinds[2] == kinds[0]
