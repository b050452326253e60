"""Memory and extra time over the model zoo: plans for 50 % and 25 % of the plain peak beside checkpoints by hand.

    python benchmarks/zoo.py                  # every model; writes benchmarks/results/zoo.json and zoo.md
    python benchmarks/zoo.py GPT LSTM         # some of them
    python benchmarks/zoo.py --target h200    # for a device that is not here

Bytes are those of the compiled gradient program. Extra time is counted the same way for all: FLOPs of contractions
of the gradient's jaxpr, loops multiplied by their trip counts, over those of the plain model; for GPUs and TPUs, the
roofline of the compiled program's kernels beside them, and what they wait for copies. Where the device has a link to a
host's memory, plans are also made with permission to use it. Accelerators get batches sixteen times as large: the
models were made small for CPUs, and at that size a TPU holds most of their activations in its vector memory.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import flax
import flax.linen as nn
import jax
from large import SCANNED
from models import MODELS

import jaxremat
from jaxremat.backends.devices import resolve_target
from jaxremat.compiled.compile import compile_gradient
from jaxremat.cost.flops import program_flops

RESULTS = Path(__file__).resolve().parent / "results"
FRACTIONS = (0.5, 0.25)
ON_HOST = "with the host"
BATCHES_ON_ACCELERATORS = 16
HAND = {
    "plain": None,
    "full": lambda: nothing_saveable(),
    "dots": lambda: jax.checkpoint_policies.dots_saveable,
    "dots, no batch": lambda: jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def nothing_saveable():
    return jax.checkpoint_policies.nothing_saveable


def measure(loss, args, target: str | None) -> dict[str, float | None]:
    """Compiled peak and bytes on the host, FLOPs and, where there is one, roofline in seconds of a gradient program."""
    flops = program_flops(jax.make_jaxpr(jax.value_and_grad(loss))(*args).jaxpr, matrix_only=True)
    report = compile_gradient(loss, args, target=target)
    told = {"peak_bytes": report.peak_bytes, "flops": flops, "seconds": report.seconds}
    return told | ({"host_bytes": report.host_bytes} if report.host_bytes else {})


def batches(target: str | None) -> int:
    """How many of the models' own batches a target gets at once."""
    return 1 if resolve_target(target).platform == "cpu" else BATCHES_ON_ACCELERATORS


def enlarged(loss, args, target: str | None):
    """The loss with as many examples as the target deserves: parameters come first, all else has a batch in front."""
    times = batches(target)
    return loss, (args[0], *(jax.ShapeDtypeStruct((times * a.shape[0], *a.shape[1:]), a.dtype) for a in args[1:]))


def by_hand(make, policy, scanned: bool):
    """The model with `nn.remat` on every block, whose parameters keep their names."""

    def wrap(block):
        made = nn.remat(block, policy=policy, prevent_cse=not scanned)
        made.__name__ = block.__name__
        return made

    return make(wrap)


def run_model(name: str, target: str | None) -> dict:
    """Every way of one model: name to bytes, extra FLOPs and, for plans, seconds to plan."""
    make, rows = MODELS[name], {}
    for choice, policy in HAND.items():
        model = make(lambda block: block) if policy is None else by_hand(make, policy(), name in SCANNED)
        rows[choice] = measure(*enlarged(*model, target), target)
    loss, args = enlarged(*make(lambda block: block), target)
    for fraction in FRACTIONS:
        rows[f"plan {fraction:.0%}"] = planned(loss, args, fraction, target)
        if resolve_target(target).host_bytes_per_second:
            rows[f"plan {fraction:.0%}, {ON_HOST}"] = planned(loss, args, fraction, target, allow=("offload",))
    return rows


def planned(loss, args, fraction: float, target: str | None, **options) -> dict[str, float | None]:
    """A plan for a fraction of the plain peak, measured; the least that was reached where there is none."""
    start = time.perf_counter()
    try:
        plan = jaxremat.plan(loss, *args, budget=fraction, target=target, **options)
    except jaxremat.BudgetError as error:
        return {"min_peak_bytes": error.min_peak_bytes}
    told = {"predicted_bytes": plan.peak_bytes, "predicted_overhead": plan.overhead}
    told |= {"planning_seconds": round(time.perf_counter() - start, 1)}
    return measure(plan.apply(loss), args, target) | told


def to_markdown(results: dict) -> str:
    """One row per model: share of the plain peak, extra FLOPs of contractions and, where it is known, time."""
    ways = [way for way in next(iter(results.values())) if way != "plain"]
    lines = ["| model | plain | " + " | ".join(ways) + " |", "|---" * (len(ways) + 2) + "|"]
    for name, rows in results.items():
        plain = rows["plain"]
        cells = [_cell(rows[way], plain) for way in ways]
        lines.append(f"| {name} | {plain['peak_bytes'] / 2**20:.0f} MiB | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(row: dict, plain: dict) -> str:
    if "peak_bytes" not in row:
        return f"– (least {row['min_peak_bytes'] / plain['peak_bytes']:.0%})"
    share, more = row["peak_bytes"] / plain["peak_bytes"], row["flops"] / plain["flops"] - 1
    time = f", time {row['seconds'] / plain['seconds'] - 1:+.0%}" if row.get("seconds") else ""
    away = f", {row['host_bytes'] / 2**20:.0f} MiB away" if row.get("host_bytes") else ""
    return f"{share:.0%}, {more:+.0%}{time}{away}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help=f"among {', '.join(MODELS)}; all by default")
    parser.add_argument("--target", help="device to compile for; this machine's by default")
    options = parser.parse_args()
    device, times = resolve_target(options.target).name, batches(options.target)
    enlarging = f"batches x {times}, " if times > 1 else ""
    key = f"{device}, {enlarging}jax {jax.__version__}, flax {flax.__version__}"
    path = RESULTS / "zoo.json"
    stored = json.loads(path.read_text()) if path.exists() else {}
    for name in options.models or MODELS:
        stored.setdefault(key, {})[name] = run_model(name, options.target)
        print(to_markdown({name: stored[key][name]}), flush=True)
        path.write_text(json.dumps(stored, indent=1) + "\n")
        text = "\n".join(f"{key}:\n\n{to_markdown(results)}" for key, results in stored.items())
        path.with_suffix(".md").write_text(text)


if __name__ == "__main__":
    main()
