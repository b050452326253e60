"""What the link to the host can hide of what models ask for: from rows of the zoo, by arithmetic alone.

    python benchmarks/link.py h200                             # reads benchmarks/results/zoo.json
    python benchmarks/link.py h200 --rows PATH                 # another file of such rows

A copy is free while the forward runs: a third of a gradient, at the bandwidth that plans count on. Two thirds of the
extra time of recomputation at 25 % of the peak is what recomputation alone takes at some larger share, interpolated
between the rows; the bytes between the two shares have to wait on the host.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from jaxremat.backends.devices import resolve_target

FORWARD = 1 / 3  # of a gradient: its products take as long again for each operand
WANTED = 2 / 3  # of the extra time of recomputation
MIB = 2**20


def table(rows: dict[str, dict], bytes_per_second: float) -> Iterator[str]:
    """One line per model that recomputation alone brings to a quarter of its peak, at more time."""
    for model, ways in rows.items():
        plain, quarter, half = (ways[way] for way in ("plain", "plan 25%", "plan 50%"))
        if "seconds" not in quarter or quarter["seconds"] <= plain["seconds"]:
            continue
        peaks = [way["peak_bytes"] for way in (quarter, half, plain)]
        extra = [way["seconds"] / plain["seconds"] - 1 for way in (quarter, half, plain)]
        with_host = ways["plan 25%, with the host"]["seconds"] / plain["seconds"] - 1
        needed_bytes = np.interp(-WANTED * extra[0], np.negative(extra), peaks) - peaks[0]
        hidden_bytes = FORWARD * plain["seconds"] * bytes_per_second
        cells = [f"{extra[0]:+.1%}", f"{with_host:+.1%}", f"{WANTED * extra[0]:+.1%}"]
        cells += [f"{needed_bytes / MIB:.0f}", f"{hidden_bytes / MIB:.0f}", f"{hidden_bytes / needed_bytes:.0%}"]
        yield "| " + " | ".join([model, *cells]) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", help="a device of the zoo's rows")
    parser.add_argument("--rows", type=Path, default=Path(__file__).parent / "results" / "zoo.json")
    options = parser.parse_args()
    device = resolve_target(options.target)
    assert device.sustained_host_bytes_per_second, "the device has no link"
    stored = json.loads(options.rows.read_text())
    rows = next(stored[key] for key in reversed(stored) if key.startswith(f"{device.name},"))
    print("| model at 25% | alone | with the host | two thirds | MiB that asks for | MiB that hide | share |")
    print("|---|---|---|---|---|---|---|", *table(rows, device.sustained_host_bytes_per_second), sep="\n")


if __name__ == "__main__":
    main()
