"""What it is worth to compile plans that are predicted to take a little too much, on an H200 that may be absent.

    python benchmarks/doubt.py          # all programs: ten minutes on two cores
    python benchmarks/doubt.py skips    # those whose name contains a word

A line per program, budget and doubt (`planner.timed.PEAK_DOUBT`), the one in use marked. `extra`: extra time of the
plan, by the roofline of what was compiled. `compilations`: how many the plan took, the plain program's included. The
last results are in `results/doubt.md`.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable

import jax.numpy as jnp
from constants import GATED, KERNELS, attended, gated, shape, with_skips

import jaxremat
from jaxremat.planner import timed
from jaxremat.planning.memory import PLANS

DOUBTS = (0.0, 0.04, 0.12)
BUDGETS = (0.7, 0.55, 0.4)


def unrolled(layers, x):
    for layer in layers:
        x = attended(layer, x)
    return jnp.mean(x**2)


LAYER = tuple(shape(*dims) for dims in [(256, 256)] * 3 + [(256, 1024), (1024, 256)])
PROGRAMS = {"gated": (gated, GATED), "attended": (unrolled, ([LAYER] * 4, shape(16, 512, 256))),
            "with skips": (with_skips, KERNELS)}  # fmt: skip


def row(fun: Callable, args: tuple, budget: float) -> str:
    """The cells of one plan; one that does not fit is told with the least that was reached."""
    PLANS.clear()
    start = time.process_time()
    try:
        plan = jaxremat.plan(fun, *args, budget=budget, target="h200")
    except jaxremat.BudgetError as error:
        return f"refused, {error.min_peak_bytes / error.budget_bytes:.2f} of it | | {time.process_time() - start:.0f}"
    return f"{plan.overhead:.1%} | {plan.compilations} | {time.process_time() - start:.0f}"


def main() -> None:
    print("| program | budget | doubt | extra | compilations | seconds |\n|---|---|---|---|---|---|")
    used = timed.PEAK_DOUBT
    for name, (fun, args) in PROGRAMS.items():
        if sys.argv[1:] and not any(word in name for word in sys.argv[1:]):
            continue
        for budget, doubt in itertools.product(BUDGETS, DOUBTS):
            timed.PEAK_DOUBT = doubt
            told = f"**{doubt}**" if doubt == used else f"{doubt}"
            print(f"| {name} | {budget} | {told} | {row(fun, args, budget)} |", flush=True)


if __name__ == "__main__":
    main()
