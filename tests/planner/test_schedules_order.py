"""Schedules that are followed closely: a compiler that runs first what is ready first holds more than is replayed."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from jaxremat.backends.devices import resolve_target
from jaxremat.planner.schedules import SchedulePlanner
from jaxremat.planning.executable import compile_program
from jaxremat.trace.primal import read_primal

CPU = resolve_target("cpu")
LEFT_ALONE = dataclasses.replace(CPU, backend=dataclasses.replace(CPU.backend, breadth_first=False))


def normalized(x):
    groups = x.reshape(*x.shape[:-1], 4, x.shape[-1] // 4)
    centred = groups - groups.mean((1, 2, 4), keepdims=True)
    return (centred * jax.lax.rsqrt((centred**2).mean((1, 2, 4), keepdims=True) + 1e-6)).reshape(x.shape)


def convolved(x, w):
    return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def two_branches(blocks, x):
    for wide, narrow in blocks:
        x = jax.nn.relu(normalized(convolved(x, wide)) + normalized(convolved(x, narrow)))
    return jnp.mean(x**2)


def shape(*dims):
    return jax.ShapeDtypeStruct(dims, jnp.float32)


ARGUMENTS = [(shape(3, 3, 32, 32), shape(1, 1, 32, 32))] * 4, shape(16, 32, 32, 32)


@pytest.mark.parametrize("share", [0.4, 0.35])
def test_two_branches_are_not_held_at_once(share):
    primal = read_primal(two_branches, ARGUMENTS, 0, False)
    compiled = []
    for device in (LEFT_ALONE, CPU):
        planner = SchedulePlanner(primal, device)
        outcome = planner.fit(int(share * planner.plain.replayed_bytes))
        compiled.append(compile_program(primal, outcome.form.emitted(primal, CPU), False, CPU).report.peak_bytes)
    assert compiled[1] == pytest.approx(outcome.peak_bytes, rel=0.01)
    assert compiled[1] <= compiled[0]


def test_only_where_a_compiler_runs_first_what_is_ready_first():
    """And wherever the least is looked for, in either order."""
    primal = read_primal(two_branches, ARGUMENTS, 0, False)
    for device, scope in ((CPU, "order"), (LEFT_ALONE, "all")):
        planner = SchedulePlanner(primal, device)
        assert planner.fit(int(0.5 * planner.plain.replayed_bytes)).program.barrier_scope == scope
        assert planner.plain.program.barrier_scope == "all"
        assert planner.least()[0].program.barrier_scope == scope
        assert {outcome.program.barrier_scope for outcome in planner.least()} == {"all", "sources", "order"}


def test_toy_programs_are_left_alone():
    """There what waits at barriers takes more than order saves."""
    toy = [(shape(3, 3, 8, 8), shape(1, 1, 8, 8))] * 4, shape(2, 16, 16, 8)
    planner = SchedulePlanner(read_primal(two_branches, toy, 0, False), CPU)
    assert planner.fit(int(0.6 * planner.plain.replayed_bytes)).program.barrier_scope == "all"
    assert planner.least()[0].program.barrier_scope == "all"
