"""Lines that hold a rule, broken one at a time: every break must fail a test of the room that owns the line.

    python tests/mutations.py              # all of them; prints which test file caught which, fails if one survives
    python tests/mutations.py cost         # those whose file or line contains a word

Works on copies of the package, one process per core, so the checkout stays as it is. CI runs it beside the tests.
"""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "jaxremat"

_CAUGHT = 100  # an exit status that neither pytest nor an interpreter has

_FRESH = multiprocessing.get_context("forkserver")  # imports what no break is in once, for all processes
_FRESH.set_forkserver_preload(["chex", "flax.linen", "flax.nnx", "hypothesis", "jax", "optax", "scipy.optimize"])

_OPTIONS = ("-q", "-x", "-n0", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning")


class Mutation(NamedTuple):
    """A line of a file of the package, the same line broken, and the test file that must fail then."""

    tests: str
    file: str
    line: str
    broken: str


_BROKEN_BY_TESTS = {
    "tests/cost/test_bodies.py": (("backends/cuda.py", "reorders_iterations=True", "reorders_iterations=False"),),
    "tests/cost/test_cpu_rules.py": (
        ("cost/loop_fusion.py", '_LIBRARY_SUMS = ("reduce", "reduce_window")', '_LIBRARY_SUMS = ("reduce",)'),
        ("cost/loop_fusion.py", '_LIBRARY_SUMS = ("reduce", "reduce_window")', '_LIBRARY_SUMS = ("reduce_window",)'),
        ("cost/hlo_elementwise.py", "if not hlo.is_read_once(slots[place]):", "if False:"),
        ("cost/memory.py", "[*self._unread(), *map(self._span, own)]", "[*map(self._span, own)]"),
        ("cost/hlo_windows.py", " and all(size in (1, step) for size, step in zip(sizes, strides))", ""),
        ("cost/hlo_products.py", "return read if layout.is_canonical[side] else _copy(", "return read or _copy("),
        ("cost/loop_fusion.py", '_LIBRARY_ALONE = ("dot", "conv")', "_LIBRARY_ALONE = ()"),
        ("cost/loop_fusion.py", "_LIBRARY_MIN_ELEMENTS = 4096", "_LIBRARY_MIN_ELEMENTS = 1"),
        ("cost/loop_fusion.py", "op.splits_rows and (len(self.reads[index])", "(len(self.reads[index])"),
        ("cost/loop_fusion.py", "return not (reuses and self.expensive[producer])", "return True"),
        ("cost/loop_fusion.py", "op.kind in ELEMENTWISE - EXACT", "op.kind in ()"),
        ("cost/loop_fusion.py", 'op.kind in EXPENSIVE or op.kind in ("reduce", "gather")', "False"),
        ("cost/loop_fusion.py", "shared.add(producer)", "pass"),
        ("cost/hlo_ops.py", "return leads and (is_matrix or", "return leads and (True or"),
        ("cost/hlo_products.py", "turned[side] = hlo.reads[read][0], (1 - contract[0],)", "pass"),
        ("cost/hlo_products.py", "and max(out[1], image[1]) > 16", ""),
        ("cost/hlo_ops.py", "op.kind in COMMUTATIVE)", "False)"),
        ("cost/memory.py", "else fusion.is_elementwise_on(kernel, buffer)", "else True"),
        ("cost/hlo_model.py", "carry if op.constant is None else", "carry if True else"),
        ("cost/hlo_builder.py", "if part not in read:", "if False:"),
        ("cost/hlo_ops.py", "counts[id(a)] == counts[id(b)] == 1", "False"),
        ("cost/loop_fusion.py", "times > _MOST_TIMES", "False"),
        ("cost/loop_fusion.py", "(times > 1 or len(users) > 1)", "times > 1"),
        ("cost/loop_fusion.py", "self._indices[index] if same else {index}", "self._indices[index]"),
        ("cost/hlo_model.py", "low >= 0 and high >= 0 for", "True for"),
        ("backends/cpu.py", "expands_searches=True", "expands_searches=False"),
        ("backends/cpu.py", "rolls_threefry=True", "rolls_threefry=False"),
        ("backends/cpu.py", "spreads_reciprocals=True", "spreads_reciprocals=False"),
        ("backends/cpu.py", "breadth_first=True", "breadth_first=False"),
        ("backends/cpu.py", 'widened_products=frozenset({"bfloat16", "float16"})', "widened_products=frozenset()"),
    ),
    "tests/backends/test_backend.py": (("backends/cpu.py", "expands_searches=True", "expands_searches=False"),),
    "tests/cost/test_priority_fusion.py": (
        ("cost/kernel_graph.py", "return kernel.by_rows and producer.by_rows", "return True"),
        ("cost/kernel_graph.py", "return kernel.is_unary or not producer.reduces", "return True"),
        ("backends/cuda.py", '"tanh": 467', '"tanh": 7'),
        ("cost/hlo_reductions.py", 'hlo.ops[read].kind == "neg"', "False"),
        ("cost/priority_fusion.py", "read_by_others.update(graph.written_for_scatter(index))", "pass"),
    ),
    "tests/cost/test_kernel_graph.py": (
        ("cost/kernel_graph.py", "changes.append((read, before, part))", "pass"),
        ("cost/kernel_graph.py", "if size < self._own_bytes:", "if size < 0:"),
        ("cost/kernel_graph.py", "elif size < self._shared_bytes:", "elif size < 0:"),
        (
            "cost/kernel_graph.py",
            "computes_entries_once and (reduces or kind in ELEMENTWISE)",
            "computes_entries_once and False",
        ),
        ("cost/kernel_graph.py", "max((*(heroes & run),", "max((index,"),
    ),
    "tests/cost/test_hlo_products.py": (
        ("cost/hlo_ops.py", "(*batch, *rows, *columns) if merges else tuple(batch)", "tuple(batch)"),
        ("cost/hlo_ops.py", "(*batch, *rows, *columns) if merges else tuple(batch)", "(*batch, *rows, *columns)"),
    ),
    "tests/cost/test_hlo_rewrites.py": (
        ("cost/hlo_rewrites.py", "padded(product, parts) / contracted", "1.0"),
        ("cost/hlo_rewrites.py", 'kind = "window" if is_a_loop(*sizes[1:]) else "reduce"', 'kind = "window"'),
        ("cost/hlo_rewrites.py", "if device.backend.rewrites_products else program", ""),
        ("cost/hlo_rewrites.py", 'return "float32" if op.dtype in _SUMMED_WIDE else op.dtype', "return op.dtype"),
        ("cost/hlo_rewrites.py", "if ops[0].in_library:", "if False:"),
        ("cost/hlo_rewrites.py", "(shared, *others) if side == 0 else (*others, shared)", "(shared, *others)"),
    ),
    "tests/cost/test_merged_products.py": (
        ("cost/merged_products.py", "larger > _MOST_BYTES or needed & bits", "larger > _MOST_BYTES"),
        ("cost/merged_products.py", "before | needed | bits if before & bits else before", "before"),
        ("cost/merged_products.py", "larger > _MOST_BYTES or needed & bits", "needed & bits"),
        ("cost/merged_products.py", "larger = max(", "larger = min("),
        ("cost/merged_products.py", "self._merged.update([one, *joined] if joined else ())", "pass"),
        ("cost/merged_products.py", "(side, how, self._dtypes(product, side))", "(side, how)"),
        ("cost/merged_products.py", "else contracts[side]", "else ()"),
        ("cost/merged_products.py", "(user in turned and ops[user].kind in ELEMENTWISE)", "False"),
    ),
    "tests/cost/test_split_products.py": (
        ("cost/split_products.py", "if compute_capability >= least", ""),
        ("cost/split_products.py", "max(1.0, tiles * tile / (cores * _TILE**2))", "1.0"),
        ("cost/split_products.py", " + weights.sum_launch", ""),
    ),
    "tests/cost/test_hlo_orders.py": (
        ("cost/hlo_orders.py", "self.places.get(index, min(from_operands, default=_NEVER))", "_NEVER"),
        ("cost/hlo_orders.py", "turns_rows = view.order[-1] != order[-1]", "turns_rows = False"),
        ("cost/hlo_orders.py", 'kind != "broadcast" and index not in self.free and whole', 'kind != "broadcast"'),
        ("cost/hlo_orders.py", "if self.is_free(view, read):", "if False:"),
        ("cost/hlo_model.py", "outputs = [hlo.in_order(op_of[v]) for", "outputs = [op_of[v] for"),
        ("cost/hlo_transposes.py", "== list(swapped[batch:])", "== []"),
        ("cost/hlo_products.py", "if view.order in orders:", "if True:"),
    ),
    "tests/cost/test_joined.py": (
        ("cost/joined.py", "self._all_before(a) & self._bits[b] or self._all_before(b) & self._bits[a]", "False"),
        ("cost/joined.py", "found |= self._bits[other] | self._waits_for[other]", "pass"),
        ("cost/joined.py", " and not self._ops[buffer].turns_rows", ""),
        ("cost/joined.py", "return not self._sums.keys() >= reading", "return False"),
        ("cost/joined.py", "return len(reading) > 1 and any(", "return False and any("),
        ("cost/joined.py", "own = {*self._members[a], *self._members[b]}", "own = {*self._members[a]}"),
        ("cost/joined.py", "any(self._join_producer(", "list(self._join_producer("),
        ("cost/joined.py", "max([ops[kernel].elements, *reduced])", "max([ops[kernel].elements])"),
        ("cost/joined.py", 'fusion.program.ops[kernel].kind in ("reduce", "transpose") or', ""),
        ("cost/joined.py", " or makes_some", ""),
        ("cost/joined.py", "if is_one_operation or not", "if not"),
        ("cost/run_orders.py", "return inside - elsewhere", "return set()"),
        ("cost/joined.py", "len(self._reduced[a] | self._reduced[b]) <= 1", "True"),
        ("cost/joined.py", "self._is_whole(buffer, first) or self._is_one_sum_at_most(first, second)", "True"),
        (
            "cost/joined.py",
            "self._is_whole(buffer, first) or self._is_one_sum_at_most(first, second)",
            "self._is_whole(buffer, first)",
        ),
    ),
    "tests/cost/test_run_orders.py": (
        ("cost/run_orders.py", "fusion.program.reads[kernel][0] if is_taken else kernel", "kernel"),
        ("cost/run_orders.py", "return self._written[group] - freed,", "return self._written[group],"),
        ("cost/run_orders.py", "            return _FIRST, 0", "            pass"),
        ("cost/run_orders.py", "reversed(self._kernels.readers[group])", "self._kernels.readers[group]"),
        ("cost/run_orders.py", "left and left.difference(", "left or left.difference("),
        ("cost/run_orders.py", "functools.partial(sorted, key=self.fan_out().__getitem__)", "list"),
        ("cost/run_orders.py", "-min(readers, instructions)", "-readers"),
        ("cost/run_orders.py", "-min(all_bytes, most_bytes)", "-all_bytes"),
    ),
    "tests/cost/test_kernels.py": (("cost/kernels.py", "max(share, needed[buffer])", "share"),),
    "tests/solvers/test_mincut_barriers.py": (("solvers/mincut/barriers.py", "given.add(node)", "again[step] = True"),),
    "tests/cost/test_hlo_vectors.py": (
        ("cost/hlo_vectors.py", "if matrices.contracted == 1:", "if False:"),
        ("cost/hlo_vectors.py", "max(sides) == 1 or ", ""),
        ("cost/hlo_transposes.py", "(spread := hlo.spread_otherwise(read, facts.shape)) is not None", "(spread := 0)"),
    ),
    "tests/cost/test_gemm_fusion.py": (
        ("cost/gemm_fusion.py", "(alone or _is_cheap(graph, index))", "alone"),
        ("cost/gemm_fusion.py", "itertools.takewhile(functools.partial(_is_cheap, graph), chain)", "chain"),
        ("cost/gemm_fusion.py", "and narrows)", "and False)"),
        ("cost/gemm_fusion.py", "len(pieces) > _MOST_PIECES", "False"),
        ("cost/gemm_fusion.py", "is_matrix and joins_rows", "joins_rows"),
        ("cost/gemm_fusion.py", "and op.joins not in contracted", ""),
        ("cost/gemm_fusion.py", " and not any(length % _TILE for length in lengths)", ""),
        ("cost/gemm_fusion.py", 'kinds <= {"input", "broadcast"}', "True"),
        ("cost/gemm_fusion.py", "len(full) == 1 and can_select", "len(full) == 1"),
        ("cost/hlo_products.py", "facts.once(_is_undilated) and ", ""),
        ("cost/hlo_products.py", "not is_turned or facts.once(_is_pointwise)", "True"),
        ("cost/hlo_products.py", "library = () if batches[0] else _CUBLAS_FLOATS", "library = _CUBLAS_FLOATS"),
        ("backends/tpu.py", "products_compute_operands=True", "products_compute_operands=False"),
        ("cost/gemm_fusion.py", 'op.kind == "reduce" and graph.computes_operands', "False"),
        ("cost/gemm_fusion.py", "ELEMENTWISE and len(full) == 1", "ELEMENTWISE"),
        ("backends/tpu.py", "rounds_operands=True", "rounds_operands=False"),
        ("cost/hlo_products.py", "batches[0] and not hlo.backend.products_compute_operands", "batches[0]"),
    ),
    "tests/cost/test_diamonds.py": (
        ("cost/diamonds.py", "frozenset((*back, *sums, *summed, *straight)) if reached == source", "None if source"),
        ("cost/diamonds.py", "1 << (rows.shape[-1] - 1).bit_length()", "rows.shape[-1]"),
    ),
    "tests/cost/test_reductions.py": (
        ("cost/reductions.py", "_LONGEST_ROW if after == 1 else _MOST_ROWS", "2**30"),
        ("cost/reductions.py", "before * -(-after // _columns(after, read.size_bytes // read.elements))", "math.inf"),
    ),
    "tests/cost/test_loop_fusion.py": (
        ("cost/loop_fusion.py", "repeatable = not self.expensive[index] and", "repeatable ="),
        ("cost/loop_fusion.py", "op.size_bytes >= _LONG_ROWS", "False"),
    ),
    "tests/planner/test_repeats.py": (
        ("planner/repeats.py", "if same >= period", "if same"),
        ("planner/repeats.py", "for times in (1, 2)", "for times in (1, 1)"),
        ("planner/repeats.py", "has_head & (layer == ends.size)", "False"),
        ("planner/repeats.py", "np.mean(passes_bytes[np.asarray(begins) - 1])", "0"),
        ("planner/repeats.py", "        yield from _rows(kinds, first, first + start)", "        pass"),
    ),
    "tests/planner/test_prediction.py": (
        ("cost/memory.py", "used[first : last + 1] += size", "pass"),
        ("backends/backend.py", "joint.late_writes if self.breadth_first else {}", "{}"),
    ),
    "tests/cost/test_hlo_elementwise.py": (
        ("cost/hlo_elementwise.py", "if are_scattered.count(True) != 1:", "if not any(are_scattered):"),
    ),
    "tests/cost/test_memory.py": (
        ("cost/run_orders.py", " if ops[kernel].size_bytes >= backend.written_again_bytes", ""),
        ("cost/memory.py", "return into if is_left and", "return into if False and"),
        ("cost/memory.py", "name in self._in_tuples or ", ""),
        ("cost/memory.py", " * waste[~np.eye(len(shape), dtype=bool)].min()", ""),
        ("backends/tpu.py", "tile=(8, 128)", "tile=None"),
        ("cost/heap.py", "            occupied[room] |= steps", "            pass"),
        ("cost/memory.py", "taken = min if", "taken = max if"),
    ),
    "tests/cost/test_heap.py": (
        ("cost/heap.py", "low[upwards[found]] - gaps[found] if wide.size else filled[-1]", "filled[-1]"),
        ("cost/heap.py", "wide[gaps[wide].argmin()]", "wide[0]"),
        ("cost/heap.py", "gone[takes[taker]] = gone[taker]", "pass"),
        ("cost/heap.py", "    return min(reach, _reach(", "    return max(reach, _reach("),
        ("cost/heap.py", "begin[firsts] - end[firsts]", "begin[firsts] - gone[firsts]"),
        ("cost/heap.py", "reverse=True", "reverse=False"),
    ),
    "tests/cost/test_row_tiles.py": (
        ("cost/row_tiles.py", "if all(op.elements != rows for op in (ops[kernel], *read)):", "if False:"),
        ("cost/row_tiles.py", "return is_compared and", "return"),
        ("cost/row_tiles.py", "sum(length > 1 for length in op.shape) > 1", "True"),
        (
            "cost/row_tiles.py",
            "min(_MOST_SHARING, scores.elements // mask.elements)",
            "scores.elements // mask.elements",
        ),
        ("cost/row_tiles.py", "min(_MOST_SHARING, scores.elements // mask.elements)", "_MOST_SHARING"),
        ("cost/row_tiles.py", "_SHORTEST_COPIED if", "_SHORTEST_ROW if"),
        ("cost/kernels.py", "ROWS_APART if any(", "1 if any("),
    ),
    "tests/trace/test_masks.py": (
        ("trace/masks.py", "for v in found.made & read if _is_of_pairs(v)", "for v in found.made & read"),
        ("trace/masks.py", "for v in found.made & read if", "for v in found.made if"),
        ("trace/masks.py", "shape.dtype == bool and", "True and"),
        ("trace/masks.py", "as_they_are = set(jaxprs.vars_of(results))", "as_they_are = set[Var]()"),
    ),
    "tests/emit/test_script.py": (
        ("emit/script.py", "(made, written) if has_barriers and masks.eqns else (made,)", "(made, written)"),
        ("emit/script.py", "(made, written) if has_barriers and masks.eqns else (made,)", "(made,)"),
        ("emit/scheduled.py", "(*script.opening, *script.backward), env,", "script.backward, env,"),
    ),
    "tests/compiled/test_roofline.py": (
        ("compiled/roofline.py", "& (at % gap == 0)", ""),
        ("compiled/hlo_text.py", "return int(limits[0][1]) if", "return 1 if"),
    ),
    "tests/step/test_load.py": (
        ("step/program.py", '"step", self.fingerprint, self.names,', '"step", self.fingerprint,'),
        ("step/options.py", "self.verify, *allowed, self.seed", "self.verify, *allowed"),
        ("step/planned_step.py", "program.question, most_trials,", "program.question,"),
    ),
    "tests/step/test_planner.py": (("step/planner.py", "low <= _RUNG * limit", "False"),),
    "tests/step/test_planning.py": (("step/planning.py", "int(smallest.peak_bytes / APART)", "1"),),
    "tests/emit/test_zeros.py": (
        ("emit/zeros.py", "eqn.outvars[0] not in sums", "True"),
        ("emit/zeros.py", "has_barrier and not (place and ties)", "has_barrier"),
    ),
    "tests/trace/test_late_writes.py": (
        ("trace/late_writes.py", "for v, seed in zip(begun, seeds)", "for v, seed in begun.items()"),
        ("trace/late_writes.py", 'reverse=params["reverse"], ', ""),
        ("trace/late_writes.py", "jaxprs.has_effects(eqn) or ", ""),
        ("trace/late_writes.py", " and eqn.outvars[0] not in sums", ""),
        ("trace/late_writes.py", "program.put(late.get(position, eqn), inner)", "program.put(eqn, inner)"),
    ),
    "tests/trace/test_projections.py": (
        ("trace/projections.py", " and all(_other(eqn, var) in self._views for eqn in with_weights)", ""),
        ("trace/projections.py", " ^ lax.broadcast(seed, shape)", ""),
    ),
    "tests/trace/test_round_trips.py": (
        ("emit/script.py", " or (trip.stored in made and trip.source in before)", ""),
        ("emit/script.py", "trip.source in saved or ", ""),
        ("emit/scheduled.py", "if v in restored}", "if v not in restored}"),
    ),
    "tests/trace/test_bounds.py": (
        ("trace/bounds.py", "kind is None or got is None or not got.within(kind)", "kind is None or got is None"),
        ("trace/bounds.py", "b.within(a)) for a, b in zip(carry, made)", "True) for a, b in zip(carry, made)"),
        ("trace/bounds.py", "cases[max(which.low, 0) : which.high + 1]", "cases[:1]"),
        ("trace/bounds.py", "indices is not None and indices.within(Bounds(0, room))", "True"),
    ),
    "tests/trace/test_indices.py": (
        ("trace/indices.py", "elif var in self._wanted and", "elif"),
        ("trace/indices.py", "_WORTH * max", "0 * max"),
        ("trace/indices.py", "span < 1 << (8 * size)", "span <= 1 << (8 * size)"),
        ("trace/round_trips.py", "value.bounds.high - value.bounds.low <= most", "value.bounds.high <= most"),
        ("trace/round_trips.py", "0 if low >= 0 and high <= most else low", "0"),
    ),
    "tests/report/test_parts.py": (
        ("emit/script.py", "joint.values[value] for value in program.saved.tolist()", "v for v in ()"),
    ),
    "tests/planning/test_compilations.py": (
        ("planning/compilations.py", "None if self._is_as_written(outcome) else id(outcome)", "id(outcome)"),
    ),
    "tests/planning/test_fastest_search.py": (
        ("planning/fastest_search.py", "outcome.cost > 2 * self.planner.plain.cost", "False"),
        ("planning/fastest_search.py", "max(best.cost, compiled.seconds(best))", "best.cost"),
        ("planning/fastest_search.py", "return is_faster and (fits or", "return (fits or"),
    ),
    "tests/planner/test_problem.py": (("cost/sharding.py", "seconds + seconds.sum()", "seconds"),),
}
MUTATIONS = [Mutation(tests, *broken) for tests, each in _BROKEN_BY_TESTS.items() for broken in each]


def survives(mutation: Mutation) -> bool:
    """Whether the tests that own a line pass with it broken; nothing but a failed test counts as caught."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(PACKAGE, f"{folder}/jaxremat")  # with what Python has compiled of the other files
        path = Path(folder, "jaxremat", mutation.file)
        path.write_text(path.read_text().replace(mutation.line, mutation.broken, 1))
        process = _FRESH.Process(target=_test, args=(folder, str(ROOT / mutation.tests)))
        process.start()
        process.join()
    return process.exitcode != _CAUGHT


def _test(folder: str, tests: str) -> None:
    """Runs in a process of its own the tests of a file, with the package that lies in a folder."""
    sys.path[:0] = [folder, str(ROOT / "tests" / "helpers")]
    os.chdir(folder)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(nowhere, stream.fileno())
    code = pytest.main([*_OPTIONS, tests])
    sys.exit(_CAUGHT if code == pytest.ExitCode.TESTS_FAILED else 0)


def main() -> None:
    words = sys.argv[1:]
    chosen = [m for m in MUTATIONS if not words or any(word in f"{m.file} {m.line}" for word in words)]
    for mutation in chosen:
        if mutation.line not in (PACKAGE / mutation.file).read_text():
            sys.exit(f"{mutation.file} has no line {mutation.line!r} any more: say here what stands in its place")
    lived = 0
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for mutation, alive in zip(chosen, pool.map(survives, chosen)):
            lived += alive
            told = repr(mutation.broken or mutation.line)
            print("SURVIVES" if alive else "caught  ", mutation.file, told, "by", mutation.tests, flush=True)
    sys.exit(f"{lived} of {len(chosen)} survive" if lived else 0)


if __name__ == "__main__":
    main()
