"""How good predictions of time are: the overhead that a plan predicts, and that of its step times, on this machine.

    python benchmarks/time.py                # GPT, scanned GPT, ResNet, U-Net and LSTM
    python benchmarks/time.py GPT --repeats 9

Plans for three budgets, and checkpoints by hand. Programs of one model run in turn, within one process, and the least
of their runs counts: the machine's load is in all of them alike. Beside the time by the clock stands the time that the
process's threads were at work, which other processes change little, and, on a CPU, the memory that the operating system
cleared for a run: XLA:CPU allocates temporaries at every execution, and large allocations begin as fresh pages.
On a GPU or TPU, the roofline of the compiled program stands beside, too. `jaxremat.calibrate()` first, on a quiet
machine, for predictions at measured rates: what a CPU takes to clear memory is in no data sheet. Writes
benchmarks/results/time.json and time.md after every model.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
from large import SCANNED
from models import MODELS
from running import values
from zoo import HAND, by_hand

import jaxremat
from jaxremat.compiled.compile import compile_gradient

RESULTS = Path(__file__).resolve().parent / "results"
NAMES = ("GPT", "GPT, scanned", "ResNet", "U-Net", "LSTM")
FRACTIONS = (0.7, 0.5, 0.35)
POLICIES = ("full", "dots")


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one execution takes."""

    seconds: float
    processor_seconds: float
    fresh_bytes: int

    def __or__(self, other: Cost) -> Cost:
        """The least of two executions, each number by itself."""
        return Cost(*map(min, dataclasses.astuple(self), dataclasses.astuple(other)))


def run(program: Callable, args: tuple) -> Cost:
    before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    jax.block_until_ready(program(*args))
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
    at_work = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(seconds, at_work, (after.ru_minflt - before.ru_minflt) * resource.getpagesize())


def least(programs: dict[str, Callable], args: tuple, repeats: int) -> dict[str, Cost]:
    """The cost of each program; they take turns."""
    for program in programs.values():
        jax.block_until_ready(program(*args))
    costs = {key: run(program, args) for key, program in programs.items()}
    for _ in range(repeats - 1):
        costs = {key: costs[key] | run(program, args) for key, program in programs.items()}
    return costs


def plans_of(loss: Callable, shapes: tuple) -> Iterator[tuple[str, jaxremat.Plan]]:
    """Plans by budget; one that is refused is left out."""
    for fraction in FRACTIONS:
        try:
            yield f"{fraction:.0%}", jaxremat.plan(loss, *shapes, budget=fraction)
        except jaxremat.BudgetError as error:
            print(fraction, error, flush=True)


def measured(name: str, repeats: int) -> dict[str, dict[str, float | None]]:
    """By budget, and by policy of hand-written checkpoints: overheads, and the MiB of fresh pages."""
    make = MODELS[name]
    loss, shapes = make(lambda block: block)
    plans = dict(plans_of(loss, shapes))
    by_policy = {key: by_hand(make, HAND[key](), name in SCANNED)[0] for key in POLICIES}
    programs = {"plain": loss} | by_policy | {key: plan.apply(loss) for key, plan in plans.items()}
    compiled = {key: jax.jit(jax.value_and_grad(fun)) for key, fun in programs.items()}
    costs = least(compiled, jax.tree.map(values, shapes), repeats)
    plain, plain_roofline = costs.pop("plain"), compile_gradient(loss, shapes).seconds
    predicted = {preset.name: preset.overhead for preset in jaxremat.pareto(loss, *shapes, budgets=()).presets}
    predicted |= {key: plan.overhead for key, plan in plans.items()}
    return {
        key: {
            "predicted": predicted[key],
            "roofline": roofline(plans[key], plain_roofline) if key in plans else None,
            "by the clock": cost.seconds / plain.seconds - 1,
            "at work": cost.processor_seconds / plain.processor_seconds - 1,
            "fresh": (cost.fresh_bytes - plain.fresh_bytes) / 2**20,
        }
        for key, cost in costs.items()
    }


def roofline(plan: jaxremat.Plan, plain_seconds: float | None) -> float | None:
    """The overhead of the compiled program by its kernels; None where the platform has no such model."""
    return plan.compiled.seconds / plain_seconds - 1 if plain_seconds else None


def table(rows: dict[str, dict]) -> str:
    """The results as Markdown."""
    lines = [
        "# Predicted and measured overhead",
        "",
        f"`python benchmarks/time.py`, jax {jax.__version__} on {jax.devices()[0].device_kind} ({platform.machine()}).",
        "Extra time over the plain program: predicted, by the roofline of the compiled program, by the clock, and of",
        "threads at work; and the fresh pages that the operating system clears more, or less, in a step.",
        "",
        "| model | plan or policy | predicted | roofline | by the clock | at work | fresh pages |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, found in rows.items():
        for way, row in found.items():
            overheads = (row[key] for key in ("predicted", "roofline", "by the clock", "at work"))
            cells = ["" if overhead is None else f"{overhead:+.1%}" for overhead in overheads]
            lines.append(f"| {name} | {way} | " + " | ".join(cells) + f" | {row['fresh']:+.0f} MiB |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=NAMES, help=f"of {', '.join(MODELS)}")
    parser.add_argument("--repeats", type=int, default=7, help="runs of each program")
    options = parser.parse_args()
    path = RESULTS / "time.json"
    for name in options.models:
        rows = json.loads(path.read_text()) if path.exists() else {}
        rows[name] = measured(name, options.repeats)
        path.write_text(json.dumps(rows, indent=1) + "\n")
        path.with_suffix(".md").write_text(table(rows))
        print(name, rows[name], flush=True)


if __name__ == "__main__":
    main()
