"""Kernels under way: what fusing does to what they read, and that savings told ahead are those that come true."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from fused_programs import H200, assert_runs, program_of

from jaxremat.cost.hlo_model import lower
from jaxremat.cost.kernel_graph import KernelGraph, Singles, Traffic

DEVICE = H200.as_described
ROWS = (1024, 1024)


def graph_of(program):
    graph = KernelGraph(program, DEVICE, Singles())
    for index in graph.left:
        graph.time(index)
    return graph


def seconds(graph):
    for index in graph.left:
        graph.time(index)
    return sum(graph.kernel(index).seconds for index in graph.left)


def diamond():
    return program_of(
        ("input", ROWS),
        ("exp", ROWS, 0),
        ("neg", ROWS, 1),
        ("slice", (8, 1024), 1),
        ("sub", ROWS, 1, 2),
        outputs=(3, 4),
    )


def normalised():
    def fun(x, w):
        hidden = jnp.tanh(x @ w) * 2.0 + 1.0
        return jnp.sum(hidden, 0), hidden[::-1], jnp.exp(hidden) @ w

    shapes = [jax.ShapeDtypeStruct(ROWS, jnp.float32)] * 2
    return lower(jax.make_jaxpr(fun)(*shapes).jaxpr, DEVICE.backend)


@pytest.mark.parametrize("program", [diamond(), normalised()], ids=["by hand", "lowered"])
def test_what_fusing_is_told_to_save_is_what_it_saves(program):
    candidates = KernelGraph(program, DEVICE, Singles())
    for index in sorted(candidates.left - candidates.outputs):
        graph = graph_of(program)
        if graph.ops[index].kind in ("dot", "input") or not graph.readers(index):
            continue
        told = graph.saved(index)
        before = seconds(graph)
        if told:
            graph.fuse(index)
            assert before - seconds(graph) == pytest.approx(told, rel=1e-9, abs=1e-15)


def test_fused_producers_leave_their_reads_to_their_readers():
    graph = graph_of(diamond())
    readers = graph.fuse(1)
    assert set(readers) == {2, 3, 4} and 1 not in graph.left
    assert graph.kernel(4).reads == {0: 1.0, 2: 1.0} and graph.kernel(4).inside == {1, 4}
    assert graph.kernel(3).reads == {0: 8 / 1024}, "a slice reads of what it is cut from no more than it makes"
    graph.time(3)
    assert graph.kernel(3).traffic == (2 * 8 * 1024 * 4, 0, 0)
    assert_runs(graph.fusion())


def test_all_is_run_where_it_is_read_in_the_end():
    graph = graph_of(diamond())
    graph.fuse(2)
    graph.fuse(1)
    assert graph.fusion().kernels == (3, 4)
    assert graph.kernel(4).work > graph.kernel(3).work


def test_equal_operations_are_one_single():
    program = program_of(("input", ROWS), ("exp", ROWS, 0), ("exp", ROWS, 1), ("exp", (4,), 0))
    singles = Singles()
    one, other, small = (singles.of(program.ops[i], [program.ops[i - 1]], DEVICE) for i in (1, 2, 3))
    assert one is not small and one.number == other.number != small.number


@pytest.mark.parametrize(("moved", "work"), [(1e9, 0.0), (0.0, 1e12), (1e8, 1e10)])
def test_a_kernel_takes_its_launch_and_a_twentieth_of_the_shorter(moved, work):
    graph = graph_of(diamond())
    memory, arithmetic = moved / DEVICE.bandwidth_bytes_per_second, work / DEVICE.vector_flops_per_second
    expected = 1e-6 + max(memory, arithmetic) + 0.05 * min(memory, arithmetic)
    assert graph._seconds(work, Traffic(moved, 0.0, 0.0), graph.kernel(4)) == pytest.approx(expected)


def test_few_blocks_read_slowly():
    graph = graph_of(diamond())
    split = [dataclasses.replace(graph.kernel(4), blocks=blocks) for blocks in (1e4, 8)]
    many, few = (graph._seconds(0.0, Traffic(1e8, 0.0, 0.0), kernel) for kernel in split)
    assert few == pytest.approx(1e-6 + 1e8 / (8 * DEVICE.core_bytes_per_second)) and few > 2 * many


def taken(fun, *shapes):
    """Every operation of a function as a kernel of its own, timed; constants are made where they are read."""
    program = lower(jax.make_jaxpr(fun)(*shapes).jaxpr, DEVICE.backend)
    graph = graph_of(program)
    constants = {index for index in graph.left if not graph.reads[index]}
    graph.make_inside_all(constants)
    for index in graph.left:
        graph.time(index)
    return graph


SCORES, SCALE = (
    jax.ShapeDtypeStruct((128, 512, 512, 4), jnp.bfloat16),
    jax.ShapeDtypeStruct((128, 1, 512, 4), jnp.float32),
)


def softmax_of_columns(x, scale):
    y = x.astype(jnp.float32) * 0.125
    exponentials = jnp.exp(y - jnp.max(y, axis=1, keepdims=True))
    shares = (exponentials / jnp.sum(exponentials, axis=1, keepdims=True)).astype(jnp.bfloat16)
    return shares, (exponentials * scale).astype(jnp.bfloat16)


def test_times_are_those_of_the_compiler():
    """What `--xla_dump_hlo_pass_re=priority-fusion` says of this program compiled for an H200, in microseconds: of what
    makes exponentials and its three readers, apart and with it in each."""
    graph = taken(softmax_of_columns, SCORES, SCALE)
    (exp,) = (index for index in graph.left if graph.ops[index].kind == "exp")
    apart = graph.kernel(exp).seconds + sum(graph.kernel(reader).seconds for reader in graph.readers(exp))
    assert 1e6 * apart == pytest.approx(1021.7, abs=1)
    assert 1e6 * graph.saved(exp) == pytest.approx(1021.7 - 870.2, abs=1)


@pytest.mark.parametrize(
    ("spread", "microseconds"),
    [((256, 64), 0.8), ((128, 1, 512, 4), 44.7)],
    ids=["from the caches of cores", "from the cache that they share"],
)
def test_what_is_spread_is_read_again_from_caches(spread, microseconds):
    """Also as the compiler says: of a row added to 64 MiB of pictures, and a mebibyte that multiplies 512 MiB."""
    whole = (256, 32, 32, 64) if len(spread) == 2 else (128, 512, 512, 4)
    shape = lambda dims: jax.ShapeDtypeStruct(dims, jnp.float32)
    one = lambda row: row[:, None, None] if row.ndim == 2 else row

    def seconds_with(fun):
        graph = taken(fun, shape(whole), shape(spread))
        for index in [index for index in graph.left if graph.ops[index].kind == "broadcast"]:
            graph.fuse(index)
        (root,) = graph.outputs
        graph.time(root)
        return graph.kernel(root).seconds

    more = seconds_with(lambda x, row: x * one(row)) - seconds_with(lambda x, row: x * 2.0)
    assert 1e6 * more == pytest.approx(microseconds, abs=0.2)


def test_what_is_read_twice_where_an_entry_is_computed_is_computed_once():
    """`x * x + x` reads a producer three times at the same place; reversed, it is computed again."""
    program = program_of(
        ("input", ROWS),
        ("exp", ROWS, 0),
        ("mul", ROWS, 1, 1),
        ("add", ROWS, 2, 1),
        ("rev", ROWS, 1),
        ("sub", ROWS, 3, 4),
    )
    graph = graph_of(program)
    graph.fuse(2)
    assert graph.kernel(3).reads == {1: 1.0} and not graph.kernel(3).elsewhere
    graph.fuse(3)
    graph.fuse(4)
    assert graph.kernel(5).reads == {1: 2.0} and graph.kernel(5).elsewhere == {1}
    graph.fuse(1)
    assert graph.kernel(5).work > 2 * graph.single[1].work and graph.kernel(5).reads == {0: 2.0}


def test_sums_stand_where_they_are_made():
    """The kernel that ends with 4 holds the sum 1, so it runs before 2 and 3."""
    program = program_of(
        ("input", ROWS),
        ("reduce", (1024,), 0),
        ("exp", ROWS, 0),
        ("tanh", ROWS, 2),
        ("neg", (1024,), 1),
        outputs=(3, 4),
    )
    graph = graph_of(program)
    graph.fuse(1)
    assert graph.fusion().kernels == (4, 2, 3)
