"""Schedules that are followed closely, and schedules whose order is left to the compiler: peaks, and measured seconds.

    python benchmarks/order.py [--models ResNet GPT ...] [--shares 0.5 0.3] [--repeats 15]
        [--out benchmarks/results/order]

Each schedule of a model of `models.py` is emitted twice: with barriers where recomputation moves on to another part of
the program, and followed closely, with barriers wherever the schedule turns back and behind every contraction. Both are
compiled for this machine's CPU and run in turns with the program as written, in one process. Printed are predicted and
compiled peaks, and the median of the seconds, as parts of those of the program as written.
"""

import argparse
import dataclasses
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
from models import MODELS
from running import peak_bytes, values

from jaxremat.backends.devices import resolve_target
from jaxremat.planner.prediction import predict
from jaxremat.planner.schedules import ScheduleOutcome, SchedulePlanner
from jaxremat.trace.primal import read_primal

DEVICE = resolve_target("cpu")
LEFT = dataclasses.replace(DEVICE, backend=dataclasses.replace(DEVICE.backend, breadth_first=False))


def forms(loss, args, shares: list[float]) -> dict[tuple[str, str], tuple[Callable, int]]:
    """By share of the replayed peak and by order: (the function as scheduled, its predicted bytes)."""
    primal = read_primal(loss, args, 0, False)
    planners = {"left": SchedulePlanner(primal, LEFT), "followed": SchedulePlanner(primal, DEVICE)}
    plain = planners["left"].plain
    made = {("1", "as written"): (loss, predicted(plain))}
    for share in shares:
        for order, planner in planners.items():
            outcome = planner.fit(int(share * plain.replayed_bytes))
            run = outcome.form.emitted(primal, DEVICE)
            made[f"{share:g}", order] = (lambda *args, run=run: run(*jax.tree.leaves(args))[0]), predicted(outcome)
    return made


def predicted(outcome: ScheduleOutcome) -> int:
    problem = outcome.problem
    return predict(problem.joint, problem.graph, outcome.program, DEVICE).peak_bytes


def rows(name: str, shares: list[float], repeats: int) -> list[str]:
    loss, args = MODELS[name](lambda block: block)
    given = jax.tree.map(values, args)
    made = forms(loss, args, shares)
    compiled = {key: jax.jit(jax.value_and_grad(fun)).lower(*args).compile() for key, (fun, _) in made.items()}
    seconds = {key: [] for key in compiled}
    for _ in range(repeats):
        for key, executable in compiled.items():
            start = time.perf_counter()
            jax.block_until_ready(executable(*given))
            seconds[key].append(time.perf_counter() - start)
    plain, *_ = compiled
    whole, usual = peak_bytes(compiled[plain]), statistics.median(seconds[plain])
    return [
        f"| {name} | {share} | {order} | {made[share, order][1] / whole:.3f} | {peak_bytes(executable) / whole:.3f} "
        f"| {statistics.median(seconds[share, order]) / usual:.2f} |"
        for (share, order), executable in compiled.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--shares", nargs="+", type=float, default=[0.5, 0.3])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "order")
    options = parser.parse_args()
    lines = ["| model | share | order | predicted | compiled | time |", "|---|---|---|---|---|---|"]
    for name in options.models:
        lines += rows(name, options.shares, options.repeats)
        print("\n".join(lines[-1 - 2 * len(options.shares) :]), flush=True)
    command = shlex.join(["python", "benchmarks/order.py", *sys.argv[1:]])
    title = f"`{command}`, jax {jax.__version__}, on a machine of two shared CPU cores.\n\n"
    options.out.with_suffix(".md").write_text(title + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
