"""Plans for a GPU beside what people get by hand or for free, at equal bytes: roofline time and FLOPs as compiled.

    python benchmarks/rivals.py                    # all models for an h200; writes benchmarks/results/rivals.json, .md
    python benchmarks/rivals.py "GPT, bfloat16" --rivals full xla:0.7

Rivals are `nn.remat` on every block, with each policy, and XLA's own rematerialization pass with part of the plain
program's memory. Each plan gets the bytes of its rival. Time is that of the optimized program's kernels, by roofline.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import flax
import jax
import jaxlib
from kernels import Compiled, compiled
from large import LARGE
from zoo import HAND

import jaxremat
from jaxremat.backends.devices import resolve_target
from jaxremat.compiled.roofline import roofline

RESULTS = Path(__file__).resolve().parent / "results"
RIVALS = (*(way for way in HAND if way != "plain"), "xla:0.7", "xla:0.5")


def measure(program: Compiled, target: str) -> dict:
    time = roofline(program.text, resolve_target(target))
    return {"peak_bytes": program.peak_bytes, "seconds": time.seconds, "flops": time.flops}


def run_model(name: str, rivals: Sequence[str], target: str) -> dict:
    """The plain program, and by rival: what it takes, and what the plan within its bytes takes."""
    loss, args = LARGE[name](lambda block: block)
    rows = {"plain": measure(compiled(name, "plain", target), target)}
    for rival in rivals:
        theirs = measure(compiled(name, rival, target), target)
        plan = jaxremat.plan(loss, *args, budget=theirs["peak_bytes"], target=target)
        report = plan.compiled
        ours = {"peak_bytes": report.peak_bytes, "seconds": report.seconds, "flops": report.flops}
        ours |= {"compilations": plan.compilations, "predicted_bytes": plan.peak_bytes}
        rows[rival] = {"rival": theirs, "plan": ours}
        print(to_markdown({name: rows}), flush=True)
    return rows


def to_markdown(results: dict) -> str:
    """One row per rival: part of the plain peak, extra time, extra FLOPs, of the rival and of the plan."""
    lines = ["| model | rival | rival takes | plan within its bytes | compilations |", "|---" * 5 + "|"]
    for name, rows in results.items():
        plain = rows["plain"]
        for rival, row in rows.items():
            if rival != "plain":
                ours = row["plan"]
                cells = (name, rival, _cell(row["rival"], plain), _cell(ours, plain))
                lines.append(f"| {' | '.join(cells)} | {ours['compilations']} |")
    return "\n".join(lines) + "\n"


def _cell(row: dict, plain: dict) -> str:
    share, seconds, flops = (row[key] / plain[key] for key in ("peak_bytes", "seconds", "flops"))
    return f"{share:.3f}, time {seconds - 1:+.1%}, FLOPs {flops - 1:+.1%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help=f"among {', '.join(LARGE)}; all by default")
    parser.add_argument("--rivals", nargs="*", default=RIVALS, help=f"among {', '.join(RIVALS)}; all by default")
    parser.add_argument("--target", default="h200")
    options = parser.parse_args()
    key = f"{options.target}, jax {jax.__version__}, jaxlib {jaxlib.__version__}, flax {flax.__version__}"
    path = RESULTS / "rivals.json"
    stored = json.loads(path.read_text()) if path.exists() else {}
    for name in options.models or LARGE:
        stored.setdefault(key, {})[name] = run_model(name, options.rivals, options.target)
        path.write_text(json.dumps(stored, indent=1) + "\n")
        text = "\n".join(f"{key}:\n\n{to_markdown(results)}" for key, results in stored.items())
        path.with_suffix(".md").write_text(f"# Plans and their rivals at equal bytes\n\n{text}")


if __name__ == "__main__":
    main()
