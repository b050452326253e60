"""Lines that hold a compiler's rule, broken one at a time: every break must fail a test of the room that owns the line.

    python tests/mutations.py              # all of them; prints which test file caught which, fails if one survives
    python tests/mutations.py cost         # those whose file or line contains a word

Works on a copy of the package, so the checkout stays as it is. Collected by no test run: it takes minutes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MUTATIONS = {
    "tests/cost/test_cpu_rules.py": (
        ("cost/loop_fusion.py", '_LIBRARY_STARTERS = ("dot", "conv", "reduce")', '_LIBRARY_STARTERS = ("dot", "conv")'),
        ("cost/loop_fusion.py", '_LIBRARY_ALONE = ("dot", "conv")', "_LIBRARY_ALONE = ()"),
        ("cost/loop_fusion.py", "_LIBRARY_MIN_ELEMENTS = 4096", "_LIBRARY_MIN_ELEMENTS = 1"),
        ("cost/loop_fusion.py", "op.splits_rows and (len(op.reads) > 8", "(len(op.reads) > 8"),
        ("cost/loop_fusion.py", "return not (reuses and self.expensive[producer])", "return True"),
        ("cost/loop_fusion.py", "op.kind in ELEMENTWISE - EXACT", "op.kind in ()"),
        ("cost/loop_fusion.py", 'op.kind in EXPENSIVE or op.kind in ("reduce", "gather")', "False"),
        ("cost/loop_fusion.py", "shared.add(producer)", "pass"),
        ("cost/hlo_model.py", "fits = not self._backend.dot_copies or (leading and joined)", "fits = True"),
        ("cost/hlo_model.py", "turned[side] = op.reads[0], (1 - contract[0],)", "pass"),
        ("cost/hlo_model.py", "and max(out[1], image[1]) > 16", ""),
        ("cost/hlo_model.py", "if op.kind in COMMUTATIVE else", "if False else"),
        ("cost/memory.py", "else fusion.is_elementwise_on(kernel, buffer)", "else True"),
        ("backends/cpu.py", "expands_searches=True", "expands_searches=False"),
        ("backends/cpu.py", "rolls_threefry=True", "rolls_threefry=False"),
        ("backends/cpu.py", "breadth_first=True", "breadth_first=False"),
        ("backends/cpu.py", 'widened_products=frozenset({"bfloat16", "float16"})', "widened_products=frozenset()"),
    ),
    "tests/backends/test_backend.py": (("backends/cpu.py", "expands_searches=True", "expands_searches=False"),),
    "tests/cost/test_priority_fusion.py": (
        ("backends/cuda.py", '"tanh": 467', '"tanh": 7'),
        ("cost/priority_fusion.py", "if self._normalises(index, reader):", "if False:"),
    ),
    "tests/planner/test_prediction.py": (("cost/memory.py", "used[first : last + 1] += size", "pass"),),
    "tests/cost/test_memory.py": (("cost/memory.py", " * waste[~np.eye(len(shape), dtype=bool)].min()", ""),),
    "tests/planner/test_problem.py": (("cost/sharding.py", "seconds + seconds.sum()", "seconds"),),
}
"""By the test file that must fail: (file of the package, a line as it is, the same line broken)."""


def survives(file: str, line: str, broken: str, tests: str) -> bool:
    """Whether the tests pass with a line broken."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        shutil.copytree(ROOT / "jaxremat", copy / "jaxremat", ignore=shutil.ignore_patterns("__pycache__"))
        path = copy / "jaxremat" / file
        text = path.read_text()
        if line not in text:
            raise SystemExit(f"{file} has no line {line!r} any more: say here what stands in its place")
        path.write_text(text.replace(line, broken, 1))
        search = os.pathsep.join([folder, str(ROOT / "tests" / "helpers")])
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-n0", "-p", "no:cacheprovider", str(ROOT / tests)]
        done = subprocess.run(
            command, cwd=folder, env={**os.environ, "PYTHONPATH": search}, capture_output=True, text=True, check=False
        )
    return done.returncode != 1


def main() -> None:
    words = sys.argv[1:]
    every = [(*mutation, tests) for tests, mutations in MUTATIONS.items() for mutation in mutations]
    chosen = [m for m in every if not words or any(word in f"{m[0]} {m[1]}" for word in words)]
    lived = []
    for file, line, broken, tests in chosen:
        alive = survives(file, line, broken, tests)
        lived += [line] if alive else []
        print("SURVIVES" if alive else "caught  ", file, repr(broken or line), "by", tests, flush=True)
    sys.exit(f"{len(lived)} of {len(chosen)} survive" if lived else 0)


if __name__ == "__main__":
    main()
