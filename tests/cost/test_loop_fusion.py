"""XLA's instruction fusion by rule, on programs by hand; compiled programs are asked in test_cpu_rules."""

import dataclasses

import pytest
from fused_programs import assert_runs, program_of

from jaxremat.backends.cpu import CPU
from jaxremat.cost.loop_fusion import fuse_by_rule

ROWS, FEW = (64, 64), (8,)


def kernels(program, backend=CPU):
    fusion = fuse_by_rule(program, backend)
    assert_runs(fusion)
    return set(fusion.kernels)


def test_what_one_reads_is_one_loop():
    program = program_of(("input", FEW), ("exp", FEW, 0), ("neg", FEW, 1), ("tanh", FEW, 2))
    assert kernels(program) == {3}


@pytest.mark.parametrize(("kind", "written"), [("neg", {2, 3}), ("exp", {1, 2, 3})])
def test_what_two_read_is_repeated_where_it_is_cheap(kind, written):
    program = program_of(("input", FEW), (kind, FEW, 0), ("sin", FEW, 1), ("cos", FEW, 1), outputs=(2, 3))
    assert kernels(program) == written


def test_a_cheap_one_of_two_operands_is_repeated_only_where_all_can_take_it():
    sort = ("input", FEW), ("input", FEW), ("add", FEW, 0, 1), ("neg", FEW, 2), ("sort", FEW, 2)
    both = (*sort[:4], ("tanh", FEW, 2))
    assert kernels(program_of(*sort, outputs=(3, 4))) == {2, 3, 4}
    assert kernels(program_of(*both, outputs=(3, 4))) == {3, 4}


def test_an_expensive_one_is_not_run_for_every_entry_that_it_is_spread_over():
    program = program_of(("input", FEW), ("exp", FEW, 0), ("broadcast", (8, 8), 1), ("neg", (8, 8), 2))
    assert kernels(program) == {1, 3}
    cheap = program_of(("input", FEW), ("neg", FEW, 0), ("broadcast", (8, 8), 1), ("neg", (8, 8), 2))
    assert kernels(cheap) == {3}


def test_a_library_takes_a_large_sum_with_what_it_alone_reads():
    """The group holds the exponential; small arrays, and sums that the library does not take, are loops."""
    program = program_of(("input", ROWS), ("exp", ROWS, 0), ("reduce", (64,), 1), ("neg", (64,), 2))
    reduction = program.ops[2]
    in_library = [*program.ops[:2], dataclasses.replace(reduction, in_library=True), program.ops[3]]
    grouped = fuse_by_rule(dataclasses.replace(program, ops=in_library), CPU)
    assert grouped.kernels == (2, 3) and grouped.runs(2) == {1, 2} and set(grouped.loops) == {3}
    alone = fuse_by_rule(program, CPU)
    assert alone.loops[3] >= {3} and kernels(program) == set(alone.kernels)


@pytest.mark.parametrize(("parts", "width", "alone"), [(2, 4, False), (9, 4, True), (2, 512, True)])
def test_a_concatenation_of_many_parts_or_long_rows_runs_by_itself(parts, width, alone):
    shape, whole = (1, width), (1, parts * width)
    program = program_of(("input", shape), ("neg", shape, 0), ("concatenate", whole, *[1] * parts), ("neg", whole, 2))
    ops = [*program.ops[:2], dataclasses.replace(program.ops[2], joins=1), program.ops[3]]
    assert (2 in kernels(dataclasses.replace(program, ops=ops))) == alone


def test_outputs_are_written_and_read_again():
    program = program_of(("input", FEW), ("exp", FEW, 0), ("neg", FEW, 1), outputs=(1, 2))
    fusion = fuse_by_rule(program, CPU)
    assert set(fusion.kernels) == {1, 2} and fusion.buffers_read[2] == {1: 1.0}
