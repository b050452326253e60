"""Who holds what of a step's arguments, by path and by the words that people use."""

import jax
import jax.numpy as jnp
import pytest
import step_programs

import jaxremat
from jaxremat.step.holders import ArgumentGroup, argument_groups, donation_warnings
from jaxremat.step.program import trace_step


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("state/params", "parameters"),
        ("state/opt", "optimizer state"),
        ("state/ema", "averages"),
        ("state/key", "random key"),
        ("x", "batch"),
    ],
)
def test_parts_of_a_state_are_called_what_people_call_them(name, role):
    step, args, _ = step_programs.auxiliary()
    call = jaxremat.jit(step, budget=0.5, donate_argnums=0)._call(args, {})
    program = trace_step(call.bind(step), call.shapes, call.names, call.donated, call.shardings)
    roles = {group.name: group.role for group in argument_groups(program)}
    assert roles[name] == role


def groups_of(fun, args, names, donated=()):
    flags = [name in donated for name in names]
    return argument_groups(trace_step(fun, args, names, flags, [None] * len(names)))


W = jax.ShapeDtypeStruct((64, 64), jnp.float32)


def averaged(w, teacher, x):
    return w - 0.1 * x.sum() * w, 0.9 * teacher + 0.1 * w, x.mean()


def test_groups_are_sorted_by_bytes_and_told_apart_by_path():
    names = ["state/params/w", "state/teacher/w", "x"]
    groups = groups_of(averaged, (W, W, jax.ShapeDtypeStruct((8,), jnp.float32)), names, {"state/params/w"})
    assert [group.name for group in groups] == ["state/params", "state/teacher", "x"]
    assert [group.role for group in groups] == ["parameters", "averages", "batch"]
    assert groups[0].sentence == "parameters (state/params), donated" and groups[1].idle_bytes == 64 * 64 * 4
    assert groups[2].sentence == "batch (x)"


def test_one_warning_for_each_part_of_a_state_that_is_not_donated():
    names = ["state/params/w", "state/teacher/w", "x"]
    groups = groups_of(averaged, (W, W, jax.ShapeDtypeStruct((8,), jnp.float32)), names)
    warned = donation_warnings(groups)
    assert [text.split()[0] for text in warned] == ["state/params", "state/teacher"]
    assert "16.0 KiB more than needed" in warned[0]


def test_numbered_children_belong_together():
    names = ["layers/0", "layers/1", "x"]
    groups = groups_of(
        lambda a, b, x: (a + x.sum(), b + x.sum()), (W, W, jax.ShapeDtypeStruct((8,), jnp.float32)), names
    )
    assert [group.name for group in groups] == ["layers", "x"] and groups[0].size_bytes == 2 * 64 * 64 * 4


def test_what_lies_on_the_host_is_told():
    group = ArgumentGroup("state/opt", "optimizer state", 0, 0, 0, host_bytes=2**20)
    assert group.sentence == "optimizer state (state/opt), 1.0 MiB on the host"
