"""How good predictions are: the predicted peak of plans, made without compiling, over the compiled one.

    python benchmarks/prediction.py                          # cpu, and h200 and tpu-v5e where their compilers are
    python benchmarks/prediction.py --target a100 GPT U-Net  # one target, some models

Writes benchmarks/results/prediction.json and prediction.md after every model; rows that are there already are kept.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

from models import MODELS, enlarged

import jaxremat
from jaxremat.backends.devices import DEVICES

RESULTS = Path(__file__).resolve().parent / "results"
TARGETS = ("cpu", "h200", "tpu-v5e")
BATCHES = {"tpu": 32}
"""How many times a model's batch, by platform: what fits in a TPU's vector memory says nothing of its main memory."""
NAMES = ("GPT", "GPT, scanned", "ResNet", "U-Net")
FRACTIONS = (1.0, 0.7, 0.45)


def ratios(name: str, target: str) -> dict[str, float | None]:
    """Predicted over compiled peak for each budget, as a fraction of the plain program; None where none fits."""
    loss, args = enlarged(MODELS[name](lambda block: block), BATCHES.get(DEVICES[target].platform, 1))
    found: dict[str, float | None] = {}
    for fraction in FRACTIONS:
        try:
            plan = jaxremat.plan(loss, *args, budget=fraction, target=target, verify="replay")
        except jaxremat.BudgetError:
            found[str(fraction)] = None
            continue
        found[str(fraction)] = round(jaxremat.verify(plan).predicted_ratio, 3)
    return found


def table(rows: dict[str, dict[str, dict[str, float | None]]]) -> str:
    """The results as Markdown: a line per target and model, then the errors per target."""
    lines = [
        "# Predicted over compiled peak",
        "",
        'Plans with `verify="replay"`; budgets as parts of the plain peak. TPUs: with 32 times the batch.',
        "",
    ]
    lines += ["| target | model | " + " | ".join(map(str, FRACTIONS)) + " |", "|" + "---|" * (2 + len(FRACTIONS))]
    for target, models in rows.items():
        for name, found in models.items():
            cells = ["refused" if found[str(f)] is None else f"{found[str(f)]:.2f}" for f in FRACTIONS]
            lines.append(f"| {target} | {name} | " + " | ".join(cells) + " |")
    lines.append("")
    for target, models in rows.items():
        errors = [abs(ratio - 1) for found in models.values() for ratio in found.values() if ratio is not None]
        if errors:
            lines.append(f"{target}: median error {statistics.median(errors):.1%}, worst {max(errors):.1%}.")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=NAMES, help=f"of {', '.join(MODELS)}")
    parser.add_argument("--target", choices=DEVICES, help="one target only")
    options = parser.parse_args()
    path = RESULTS / "prediction.json"
    for target in [options.target] if options.target else TARGETS:
        for name in options.models:
            try:
                found = ratios(name, target)
            except jaxremat.TargetError as error:
                print(f"{target}: {error}")
                break
            rows = json.loads(path.read_text()) if path.exists() else {}
            rows.setdefault(target, {})[name] = found
            path.write_text(json.dumps(rows, indent=1) + "\n")
            path.with_suffix(".md").write_text(table(rows))
            print(target, name, found, flush=True)


if __name__ == "__main__":
    main()
