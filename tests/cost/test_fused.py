"""Fused programs: what both ways of fusing must keep, and what is asked of the result."""

import jax
import jax.numpy as jnp
import pytest
from fused_programs import CPU, H200, TPU, assert_runs, program_of

from jaxremat.backends.cpu import CPU as CPU_BACKEND
from jaxremat.cost.fused import Fusion, reachable, readers_of, written_bytes
from jaxremat.cost.fusion import fuse
from jaxremat.cost.hlo_model import lower
from jaxremat.cost.loop_fusion import fuse_by_rule

X, W = jax.ShapeDtypeStruct((256, 128), jnp.float32), jax.ShapeDtypeStruct((128, 128), jnp.float32)


def attended(x, w):
    scores = jax.nn.softmax((x @ w) @ (x @ w).T)
    return jnp.sum(jnp.tanh(scores @ x))


def with_loops(x, w):
    carry, stacked = jax.lax.scan(lambda c, row: (jnp.sin(c) * row, c @ w), x[0], x)
    return jnp.sum(jnp.sort(stacked, 0)) + carry.sum()


def scattered(x, w):
    return jnp.sum(x.at[3:5].add(1.0) @ w) * jnp.concatenate([x, x * 2.0]).mean()


@pytest.mark.parametrize("device", [CPU, H200, TPU], ids=lambda device: device.name)
@pytest.mark.parametrize("fun", [attended, with_loops, scattered])
def test_kernels_have_what_they_read(fun, device):
    jaxpr = jax.make_jaxpr(lambda x, w: jax.vjp(fun, x, w)[1](jnp.float32(1)))(X, W).jaxpr
    fusion = fuse(lower(jaxpr, device.backend), device)
    assert_runs(fusion)
    live = set(reachable(fusion.program))
    run = {index for kernel in fusion.kernels for index in fusion.runs(kernel)}
    inputs = {index for index in live if fusion.program.ops[index].kind == "input"}
    constants = {index for index in live if fusion.program.ops[index].constant is not None}
    assert run | inputs | constants == live | constants, "all that is needed runs somewhere"


# x, y = f(x), y * y, sums of that, an update of x by some of it, and something that nobody reads
PROGRAM = program_of(
    ("input", (8, 8)),
    ("exp", (8, 8), 0),
    ("mul", (8, 8), 1, 1),
    ("reduce", (8,), 2),
    ("slice", (2, 8), 1),
    ("dynamic_update_slice", (8, 8), 0, 4),
    ("neg", (8, 8), 0),
    outputs=(3, 5),
)


def test_what_nobody_needs_is_not_reached():
    assert reachable(PROGRAM) == [0, 1, 2, 3, 4, 5]
    assert readers_of(PROGRAM, reachable(PROGRAM)) == [[1, 5], [2, 4], [3], [], [5], [], []]


def test_an_update_in_place_writes_the_update():
    assert [written_bytes(PROGRAM, index) for index in (2, 5)] == [256, 64]


def test_a_buffer_is_written_over_only_where_each_entry_is_read_in_its_place():
    """The kernel of 2 reads x entry by entry; with the reduction, entries of others decide."""
    users = readers_of(PROGRAM, reachable(PROGRAM))
    fusion = Fusion(PROGRAM, (2, 3), {2: {0: 1.0}, 3: {0: 1.0}}, {2: frozenset({1, 2}), 3: frozenset({1, 2, 3})}, users)
    assert fusion.is_elementwise_on(2, 0) and not fusion.is_elementwise_on(3, 0)
    assert fusion.reductions == {3: frozenset({3})} and fusion.products == {}
    assert fusion.runs(1) == frozenset({1}), "what is no loop runs itself"


def test_rules_of_a_cpu_fuse_this_program_into_three_loops():
    fusion = fuse_by_rule(PROGRAM, CPU_BACKEND)
    assert_runs(fusion)
    assert set(fusion.kernels) == {1, 3, 5}, "an exponential is not run twice, and both others read it"
