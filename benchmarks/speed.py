"""How long planning takes, beside tracing the gradient, in CPU seconds.

    python benchmarks/speed.py                            # all programs; writes results/speed.json and speed.md
    python benchmarks/speed.py GPT "GPT, scanned" --print # some of them, to the terminal alone, as CI does
    python benchmarks/speed.py --target cpu               # another target than an H200
    python benchmarks/speed.py ViT --target cpu --verify compile

Each program runs in a process of its own: `jax.make_jaxpr(jax.value_and_grad(loss))`, then `jaxremat.plan` at half of
the plain peak, at .9 where weights and their gradients alone take more than half; then the same again, of another
closure, which is remembered. Memory is what planning adds to the largest resident size of that process. Verified plans
count their compilations beyond that of the plain program. Load is the machine's: cores that others use, too, take
longer for the same.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
from models import MODELS, Scanned, Sequence, Transformer, _language

import jaxremat

RESULTS = Path(__file__).resolve().parent / "results"
BUDGET, LARGE_BUDGET = 0.5, 0.9


def _plain(name: str) -> Callable:
    return lambda: MODELS[name](lambda block: block)


def _block(**own):
    return Transformer(causal=True, **own)


PROGRAMS: dict[str, Callable[[], tuple[Callable, tuple]]] = {name: _plain(name) for name in MODELS} | {
    "7B shapes, 32 layers": lambda: _language(Sequence(_block, layers=32, width=4096, vocab=32000), 1, 2048),
    "7B shapes, scanned": lambda: _language(Scanned(Transformer, layers=32, width=4096), 1, 2048),
    "16 000 equations": lambda: _language(Sequence(_block, layers=96, width=64), 4, 64),
}
"""Makers of (loss, its arguments as shapes)."""


def measured(name: str, target: str, verify: str) -> dict[str, float | int | str]:
    """One program, in this process."""
    loss, args = PROGRAMS[name]()
    budget = LARGE_BUDGET if name.startswith("7B") else BUDGET
    plan = functools.partial(jaxremat.plan, budget=budget, target=target, verify=verify)
    plan(_small, jnp.ones((8, 8)), jnp.ones((64, 8)), budget=0.9, verify="replay")  # loads what planning needs
    trace, _ = _timed(lambda: jax.make_jaxpr(jax.value_and_grad(loss))(*args))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds, answer = _timed(lambda: _planned(plan, loss, args))
    more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    again, _ = _timed(lambda: _planned(plan, lambda *given: loss(*given), args))
    return {
        "trace": round(trace, 2),
        "plan": round(seconds, 2),
        "again": round(again, 2),
        "ratio": round(seconds / trace, 1),
        "memory_mib": round(more / 1024),
        "load": round(os.getloadavg()[0], 1),
        **answer,
    }


def _small(w: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.mean(jnp.tanh(jnp.tanh(x @ w) @ w) ** 2)


def _planned(plan: Callable, loss: Callable, args: tuple) -> dict[str, float | int]:
    try:
        made = plan(loss, *args)
    except jaxremat.BudgetError as error:
        return {"least_bytes": error.min_peak_bytes}
    return {"overhead": round(made.overhead, 4), "compilations": max(made.compilations - 1, 0)}


def _timed[T](work: Callable[[], T]) -> tuple[float, T]:
    start = time.process_time()
    made = work()
    return time.process_time() - start, made


def in_a_process_of_its_own(name: str, target: str, verify: str) -> dict:
    """The same, for one program after another."""
    command = [sys.executable, __file__, name, "--target", target, "--verify", verify, "--row"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def table(rows: dict[str, dict[str, dict]]) -> str:
    """The results as Markdown, a part for each target and verification."""
    lines = [
        f"jax {jax.__version__}, CPU seconds, at {BUDGET:.0%} of the plain peak, {LARGE_BUDGET:.0%} for the 7B shapes;"
        " again: a second plan of an equal program:"
    ]
    for part, found in rows.items():
        lines += [
            "",
            f"### {part}",
            "",
            "| program | trace | plan | plan / trace | again | compilations | memory, MiB | overhead | load |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for name, row in found.items():
            overhead = f"{row['overhead']:+.1%}" if "overhead" in row else "refused"
            numbers = (row[key] for key in ("trace", "plan", "ratio", "again"))
            cells = (*numbers, row.get("compilations", ""), row["memory_mib"], overhead, row["load"])
            lines.append(f"| {name} | " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("programs", nargs="*", default=list(PROGRAMS), help=f"of {', '.join(PROGRAMS)}")
    parser.add_argument("--target", default="h200")
    parser.add_argument("--verify", default="replay", choices=("replay", "compile"))
    parser.add_argument("--print", action="store_true", help="write no file")
    parser.add_argument("--row", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        print(json.dumps(measured(options.programs[0], options.target, options.verify)))
        return
    path, part = RESULTS / "speed.json", f"{options.target}, verify={options.verify!r}"
    rows = json.loads(path.read_text()) if path.exists() and not options.print else {}
    for name in options.programs:
        rows.setdefault(part, {})[name] = in_a_process_of_its_own(name, options.target, options.verify)
        if options.print:
            continue
        path.write_text(json.dumps(rows, indent=1) + "\n")
        path.with_suffix(".md").write_text(table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
