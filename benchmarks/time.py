"""How good predictions of time are: the overhead that a plan predicts, and that of its step times, on this machine.

    python benchmarks/time.py                # GPT, scanned GPT, ResNet, U-Net and LSTM
    python benchmarks/time.py GPT --repeats 9

Programs of one model run in turn, within one process, and the fastest of their runs count: the machine's load is in all
of them alike. On a GPU or TPU, the roofline of the compiled program stands beside. `jaxremat.calibrate()` first, for
predictions at measured rates. Writes benchmarks/results/time.json and time.md after every model.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path

import jax
from models import MODELS
from running import values

import jaxremat
from jaxremat.compiled.compile import compile_gradient

RESULTS = Path(__file__).resolve().parent / "results"
NAMES = ("GPT", "GPT, scanned", "ResNet", "U-Net", "LSTM")
FRACTIONS = (0.7, 0.5, 0.35)


def measured(name: str, repeats: int) -> dict[str, dict[str, float | None]]:
    """By budget: predicted, roofline and measured overhead; a budget that is refused is left out."""
    loss, shapes = MODELS[name](lambda block: block)
    args = jax.tree.map(values, shapes)
    plans = {}
    for fraction in FRACTIONS:
        try:
            plans[str(fraction)] = jaxremat.plan(loss, *shapes, budget=fraction)
        except jaxremat.BudgetError:
            continue
    programs = {"plain": loss} | {key: plan.apply(loss) for key, plan in plans.items()}
    seconds = fastest({key: jax.jit(jax.value_and_grad(fun)) for key, fun in programs.items()}, args, repeats)
    plain = compile_gradient(loss, shapes).seconds
    return {
        key: {
            "predicted": round(plan.overhead, 3),
            "roofline": round(plan.compiled.seconds / plain - 1, 3) if plain and plan.compiled else None,
            "measured": round(seconds[key] / seconds["plain"] - 1, 3),
        }
        for key, plan in plans.items()
    }


def fastest(programs: dict[str, Callable], args: tuple, repeats: int) -> dict[str, float]:
    """Seconds of each program's fastest run; the programs take turns."""
    for program in programs.values():
        jax.block_until_ready(program(*args))
    best = dict.fromkeys(programs, float("inf"))
    for _ in range(repeats):
        for key, program in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program(*args))
            best[key] = min(best[key], time.perf_counter() - start)
    return best


def table(rows: dict[str, dict]) -> str:
    """The results as Markdown."""
    lines = [
        "# Predicted and measured overhead",
        "",
        f"jax {jax.__version__} on {jax.devices()[0].device_kind} ({platform.machine()}). Extra step time over the",
        "plain program, by budget as a part of its peak.",
        "",
        "| model | budget | predicted | roofline | measured |",
        "|---|---|---|---|---|",
    ]
    for name, found in rows.items():
        for budget, row in found.items():
            cells = ["" if row[key] is None else f"{row[key]:+.1%}" for key in ("predicted", "roofline", "measured")]
            lines.append(f"| {name} | {budget} | " + " | ".join(cells) + " |")
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
