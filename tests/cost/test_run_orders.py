"""In which order kernels run: by hand-made programs whose orders are known."""

from fused_programs import program_of

from jaxremat.backends.cuda import CUDA
from jaxremat.cost.fused import Fusion, reachable, readers_of
from jaxremat.cost.run_orders import ByFreedBytes, Kernels, flat

# two large results of an input, what each is reduced to, and the sum of those
PROGRAM = program_of(
    ("input", (8, 8)),
    ("exp", (8, 8), 0),
    ("sin", (8, 8), 0),
    ("reduce", (8,), 1),
    ("reduce", (8,), 2),
    ("add", (8,), 3, 4),
)


def fusion_of(program):
    live = [index for index in reachable(program) if program.ops[index].kind != "input"]
    reads = {index: dict.fromkeys(program.reads[index], 1.0) for index in live}
    return Fusion(program, tuple(live), reads, {}, readers_of(program, reachable(program)))


def alone(fusion):
    return Kernels(fusion, [(kernel,) for kernel in fusion.kernels], CUDA)


def test_orders_of_a_program():
    kernels = alone(fusion_of(PROGRAM))
    assert flat(kernels.as_written()) == flat(kernels.breadth_first()) == [1, 2, 3, 4, 5]
    assert flat(kernels.depth_first()) == [1, 3, 2, 4, 5]


def test_what_frees_most_runs_first():
    """A reduction frees what it reads; until then, the next large result waits."""
    order = flat(ByFreedBytes(alone(fusion_of(PROGRAM))).order())
    assert sorted(order) == [1, 2, 3, 4, 5]
    first, then = order[:2]
    assert (first, then) in [(1, 3), (2, 4)]


def test_of_what_is_ready_at_once_the_first_runs_first():
    """As copies that the forward reads run before copies of the same that only the gradient reads."""
    program = program_of(
        ("input", (8,)),
        ("exp", (8, 8), 0),
        ("sin", (8, 8), 1),
        ("cos", (8, 8), 1),
        ("reduce", (4,), 2),
        ("reduce", (4,), 3),
        outputs=(1, 4, 5),
    )
    assert flat(ByFreedBytes(alone(fusion_of(program))).order()) == [1, 2, 4, 3, 5]


def test_what_is_returned_is_read_once_more():
    """So it is never freed."""
    operations = [(op.kind, op.shape, *reads) for op, reads in zip(PROGRAM.ops, PROGRAM.reads)]
    assert ByFreedBytes(alone(fusion_of(program_of(*operations)))).unread == {1: 1, 2: 1, 3: 1, 4: 1, 5: 1}
    returned = program_of(*operations, outputs=(1, 5))
    assert ByFreedBytes(alone(fusion_of(returned))).unread == {1: 2, 2: 1, 3: 1, 4: 1, 5: 1}


def test_what_frees_more_than_it_writes_runs_before_what_writes_less():
    """Both wait for 2."""
    program = program_of(
        ("input", (8, 8)),
        ("exp", (16, 8), 0),
        ("reduce", (4,), 1),
        ("sin", (8, 8), 2),
        ("neg", (12, 8), 1, 2),
        outputs=(3, 4),
    )
    assert flat(ByFreedBytes(alone(fusion_of(program))).order()) == [1, 2, 4, 3]


def test_a_search_begins_with_what_more_others_read_and_then_with_what_is_larger():
    """Of two sums of two each, those that read what is read twice; of those that are read alike, the larger one."""
    program = program_of(
        ("input", (8, 8)),
        ("exp", (4,), 0),
        ("sin", (8,), 0),
        ("add", (8,), 1, 2),
        ("cos", (2,), 0),
        ("neg", (2,), 4),
        ("abs", (2,), 4),
        ("add", (2,), 5, 6),
        ("add", (8,), 3, 7),
        outputs=(8,),
    )
    kernels = alone(fusion_of(program))
    assert flat(kernels.depth_first()) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert flat(kernels.by_readers()) == [4, 5, 6, 7, 2, 1, 3, 8]


def test_readers_and_bytes_are_capped_where_ways_double():
    """Ten pairs, of which each reads both of the pair before."""
    pairs = [
        (kind, (2,), *reads) for at in range(1, 20, 2) for kind, reads in (("add", (at, at + 1)), ("sub", (at, at + 1)))
    ]
    program = program_of(("input", (2,)), ("sin", (2,), 0), ("cos", (2,), 0), *pairs, outputs=(21, 22))
    rank = alone(fusion_of(program)).fan_out()
    kernels, kernel_bytes = 22, program.ops[1].size_bytes
    assert rank[:4] == [(-1, -kernel_bytes)] * 2 + [(-3, -3 * kernel_bytes)] * 2
    assert min(rank) == (-2 * kernels, -kernels * kernel_bytes)


def test_scalars_run_before_what_frees_something():
    """Both wait for 2."""
    program = program_of(
        ("input", (8, 8)),
        ("exp", (8, 8), 0),
        ("reduce", (4,), 1),
        ("reduce", (8,), 1, 2),
        ("reduce", (), 2),
        outputs=(3, 4),
    )
    assert flat(ByFreedBytes(alone(fusion_of(program))).order()) == [1, 2, 4, 3]


def test_a_group_runs_once_all_that_it_reads_is_there():
    kernels = Kernels(fusion_of(PROGRAM), [(1,), (2,), (3, 4), (5,)], CUDA)
    for order in (kernels.as_written(), kernels.depth_first(), ByFreedBytes(kernels).order()):
        assert order.index((3, 4)) > max(order.index((1,)), order.index((2,)))
        assert order[-1] == (5,)


def test_groups_that_wait_for_each_other_are_taken_apart_and_others_are_not():
    """1 and 5 cannot run as one, as 3 reads the one and is read by the other; what follows stays together."""
    program = program_of(
        *[(op.kind, op.shape, *reads) for op, reads in zip(PROGRAM.ops, PROGRAM.reads)],
        ("neg", (8,), 5),
        ("abs", (8,), 5),
        outputs=(6, 7),
    )
    kernels = Kernels(fusion_of(program), [(1, 5), (2,), (3,), (4,), (6, 7)], CUDA)
    assert set(kernels.groups) == {(1,), (5,), (2,), (3,), (4,), (6, 7)}
    assert flat(kernels.as_written()) == [1, 2, 3, 4, 5, 6, 7]


def test_results_of_several_lie_in_tuples():
    kernels = Kernels(fusion_of(PROGRAM), [(1,), (2,), (3, 4), (5,)], CUDA)
    assert kernels.in_tuples == {3, 4}


def test_what_is_behind_a_barrier_is_read_until_all_of_it_is_taken():
    """Both values are behind one barrier, and each is read there once: by two that take something, and by a reader."""
    program = program_of(
        ("input", (8, 8)),
        ("exp", (8, 8), 0),
        ("sin", (8, 8), 0),
        ("barrier", (), 1, 2),
        ("fenced", (8, 8), 3, 1),
        ("fenced", (8, 8), 3, 2),
        ("reduce", (8,), 4),
        ("reduce", (8,), 5),
        outputs=(6, 7),
    )
    scheduled = ByFreedBytes(alone(fusion_of(program)))
    assert (
        scheduled.unread[1] == scheduled.unread[2] == len(("the barrier", "one taken", "the other taken", "a reader"))
    )
    assert flat(scheduled.order())[-2:] in ([6, 7], [7, 6])
