"""Traced steps: whose buffers results take, what is held, and when a step is left as it is written."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from jaxremat.chunk.choice import Chunked
from jaxremat.step.decision import ProgramDecision
from jaxremat.step.program import trace_step

W, X = jax.ShapeDtypeStruct((4, 4), jnp.float32), jax.ShapeDtypeStruct((8, 4), jnp.float32)


def traced(fun, *args, donated=()):
    flags = [i in donated for i in range(len(args))]
    return trace_step(fun, args, [f"a{i}" for i in range(len(args))], flags, [None] * len(args))


def descended(w, m, x):
    """New parameters, new moments and a loss."""
    gradient = jax.grad(lambda w: jnp.sum(jnp.tanh(x @ w) ** 2))(w)
    m = 0.9 * m + gradient
    return w - 0.1 * m, m, jnp.sum(x)


@pytest.mark.parametrize(("donated", "reused"), [((), 0), ((0,), 1), ((0, 1), 2), ((0, 1, 2), 2)])
def test_results_take_the_buffers_of_donated_inputs_of_their_kind(donated, reused):
    program = traced(descended, W, W, X, donated=donated)
    assert sum(program.reused) == reused and program.aliased.size_bytes == reused * 64
    assert program.held_bytes == (2 * 64 + 128) + (2 * 64 + 4) - reused * 64


def test_state_that_is_not_donated_could_be():
    program = traced(descended, W, W, X, donated=(0,))
    assert program.renewed == (True, True, False)
    assert program.reusable == (False, True, False)


def test_what_nobody_reads_is_not_held():
    program = traced(lambda w, x: jnp.sum(w), W, X)
    assert program.held_bytes == 64 + 4


def test_a_result_that_is_an_input_is_held_once():
    program = traced(lambda w, x: (w, jnp.sum(x)), W, X)
    assert program.held_bytes == 64 + 128 + 4


def test_a_step_in_order_and_whole_is_as_written():
    program = traced(descended, W, W, X)
    cut = dataclasses.replace(program, chunks=(Chunked("rows", None, 4),), written=program)
    assert program.is_as_written(ProgramDecision())
    assert not cut.is_as_written(ProgramDecision())
    assert not program.is_as_written(ProgramDecision(steps=(0, 1, 0)))
    assert cut.fingerprint == program.fingerprint


def test_what_is_donated_is_part_of_the_fingerprint():
    prints = {traced(descended, W, W, X, donated=donated).fingerprint for donated in ((), (0,), (1,))}
    assert len(prints) == 3


def test_a_step_that_closes_over_a_tracer_does_not_stand_alone():
    alone = []

    def outer(scale):
        alone.append(traced(lambda x: jnp.sum(x * scale), X))
        return scale

    jax.make_jaxpr(outer)(1.0)
    assert not alone[0].stands_alone and alone[0].names == ("captured 0", "a0")
    assert traced(lambda x: jnp.sum(x), X).stands_alone
