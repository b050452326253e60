"""Kernels under way: what fusing does to what they read, and that savings told ahead are those that come true."""

import jax
import jax.numpy as jnp
import pytest
from fused_programs import H200, assert_runs, program_of

from jaxremat.cost.hlo_model import lower
from jaxremat.cost.kernel_graph import KernelGraph, Singles

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
    assert graph.kernel(3).moved_bytes == 2 * 8 * 1024 * 4
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
    assert graph._seconds(work, moved) == pytest.approx(expected)


def test_few_blocks_read_slowly():
    graph = graph_of(diamond())
    many, few = (graph._seconds_in_blocks(blocks, 0.0, 1e8, 0.0) for blocks in (1e4, 8))
    assert few == pytest.approx(1e-6 + 1e8 / (8 * DEVICE.core_bytes_per_second)) and few > 2 * many


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
