"""The saving survives compilation: the compiler neither merges nor hoists what is run again."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest
from emitted import FORMS, array

import jaxremat
from jaxremat.emit.scheduled import emit_scheduled
from jaxremat.planning.plan import apply_flat

WS = [array(32, 32, seed=i, scale=0.2) for i in range(12)]
X = array(4096, 32, seed=20)


def mlp(ws, x):
    for w in ws:
        x = jnp.tanh(x @ w)
    return jnp.sum(x**2)


@functools.cache
def plan(form):
    return jaxremat.plan(mlp, WS, X, budget=0.6 if form == "schedule" else 0.7, emit=form, verify="replay")


def compiled(fun):
    return jax.jit(jax.value_and_grad(fun)).lower(WS, X).compile()


def temp_bytes(fun):
    return compiled(fun).memory_analysis().temp_size_in_bytes


@functools.cache
def planned(form):
    return compiled(plan(form).apply(mlp))


@functools.cache
def plain_bytes():
    return temp_bytes(mlp)


def without_fences(made):
    """The planned function, its schedule as it is and every barrier gone."""
    primal = made.problem.primal

    def choose(_):
        joint, script = made.decision.form.script(primal, made.decision.device)
        loose = tuple(dataclasses.replace(segment, barrier_operands=()) for segment in script.backward)
        return joint, dataclasses.replace(script, backward=loose)

    return lambda *args: apply_flat(primal, emit_scheduled(primal, choose), args)


def test_the_plain_program_holds_every_layer():
    assert plain_bytes() >= len(WS) * X.nbytes


@pytest.mark.parametrize("form", FORMS)
def test_a_plan_holds_clearly_less(form):
    assert planned(form).memory_analysis().temp_size_in_bytes < (0.6 if form == "schedule" else 0.7) * plain_bytes()


def test_without_its_barriers_a_schedule_holds_what_the_plain_program_holds():
    """The compiler finds the recomputation equal to the first computation, and keeps that one."""
    assert temp_bytes(without_fences(plan("schedule"))) > 0.95 * plain_bytes()


def test_what_a_plan_runs_again_is_in_the_compiled_program():
    made = plan("schedule")
    text = planned("schedule").as_text()
    scheduled = sum(made.problem.joint.eqns[node].primitive.name == "dot_general" for node in made.schedule)
    assert scheduled > 3 * len(WS) - 1, "more than the plain gradient runs"
    assert text.count(" dot(") + text.count(" custom-call(") >= scheduled
