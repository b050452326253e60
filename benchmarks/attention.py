"""The two tables of Rabe & Staats (2021): memory and relative time of chunked attention for 2^8 to 2^20 tokens.

One head of width 64 in bfloat16; memory is what a compiled program holds in device memory beside its inputs and
outputs, for this CPU and, compiled from shapes alone, for an H200 and a TPU v5e (whose on-chip memory is not counted).
A dash: not compiled (standard attention beyond 2^16), or too large for the device. Time is that of this CPU in float32
(whose bfloat16 is slow), median of rounds that alternate between the two.

`python benchmarks/attention.py [cpu] [h200] [tpu-v5e] [time]` writes `benchmarks/results/attention.json` and
`attention.md`; without words it runs all.
"""

from __future__ import annotations

import json
import pathlib
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding

from jaxremat import attention
from jaxremat.backends.devices import resolve_target
from jaxremat.compiled.targets import compiler_lock, target_devices

RESULTS = pathlib.Path(__file__).parent / "results"
LENGTHS = [2**k for k in range(8, 21, 2)]
STANDARD_UP_TO = 2**16
TIMED_UP_TO = {"forward": 2**14, "gradient": 2**14}
ROUNDS = 3


def forward(attend):
    return attend


def gradient(attend):
    return jax.grad(lambda q, k, v: jnp.sum(attend(q, k, v).astype(jnp.float32)), (0, 1, 2))


PASSES = {"forward": forward, "gradient": gradient}
METHODS = {"standard": jax.nn.dot_product_attention, "chunked": attention.dot_product_attention}


def temp_bytes(fun, length: int, target: str) -> int | None:
    """Bytes of temporaries; None where the compiler says that they do not fit in the device."""
    device = resolve_target(target)
    sharding = SingleDeviceSharding(target_devices(target)[0])
    shape = jax.ShapeDtypeStruct((1, length, 1, 64), jnp.bfloat16, sharding=sharding)
    with compiler_lock(device):
        lowered = jax.jit(fun).trace(shape, shape, shape).lower(lowering_platforms=(device.platform,))
        try:
            return int(lowered.compile().memory_analysis().temp_size_in_bytes)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return None


def memory_rows(target: str) -> list[dict]:
    rows = []
    for kind, of in PASSES.items():
        for length in LENGTHS:
            row = {"target": target, "pass": kind, "length": length}
            for method, attend in METHODS.items():
                known = method == "chunked" or length <= STANDARD_UP_TO
                row[method + "_bytes"] = temp_bytes(of(attend), length, target) if known else None
            rows.append(row)
            print(row, flush=True)
    return rows


def time_rows() -> list[dict]:
    rows = []
    for kind, of in PASSES.items():
        for length in (n for n in LENGTHS if n <= TIMED_UP_TO[kind]):
            rng = np.random.default_rng(0)
            inputs = [jnp.asarray(rng.normal(size=(1, length, 1, 64)), jnp.float32) for _ in range(3)]
            funs = {method: jax.jit(of(attend)) for method, attend in METHODS.items()}
            seconds: dict[str, list[float]] = {method: [] for method in METHODS}
            for _ in range(ROUNDS + 1):
                for method, fun in funs.items():
                    start = time.perf_counter()
                    jax.block_until_ready(fun(*inputs))
                    seconds[method].append(time.perf_counter() - start)
            row = {"pass": kind, "length": length}
            row |= {m + "_seconds": statistics.median(t[1:]) for m, t in seconds.items()}
            pairs = zip(seconds["chunked"][1:], seconds["standard"][1:])
            row["ratio"] = statistics.median(ours / theirs for ours, theirs in pairs)
            rows.append(row)
            print(row, flush=True)
    return rows


def mib(size_bytes: int | None) -> str:
    return "-" if size_bytes is None else f"{size_bytes / 2**20:.1f}"


def markdown(results: dict) -> str:
    lines = ["# Memory-efficient attention", "", __doc__.split("\n\n")[1].replace("\n", " "), ""]
    lines += [f"jax {results['jax']}; `{results['command']}`; time on {results['device']}.", ""]
    lines += ["| target | pass | n | standard MiB | chunked MiB | ratio |", "|---|---|---|---|---|---|"]
    for row in results["memory"]:
        standard, chunked = row["standard_bytes"], row["chunked_bytes"]
        ratio = f"{standard / chunked:.1f}x" if standard and chunked else "-"
        lines.append(
            f"| {row['target']} | {row['pass']} | 2^{row['length'].bit_length() - 1} | {mib(standard)} "
            f"| {mib(chunked)} | {ratio} |"
        )
    lines += ["", "| pass | n | standard ms | chunked ms | chunked / standard |", "|---|---|---|---|---|"]
    for row in results["time"]:
        lines.append(
            f"| {row['pass']} | 2^{row['length'].bit_length() - 1} | {1e3 * row['standard_seconds']:.1f} "
            f"| {1e3 * row['chunked_seconds']:.1f} | {row['ratio']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def main(words: list[str]) -> None:
    path = RESULTS / "attention.json"
    old = json.loads(path.read_text()) if path.exists() else {"memory": [], "time": []}
    targets = [t for t in ("cpu", "h200", "tpu-v5e") if not words or t in words]
    kept = [row for row in old["memory"] if row["target"] not in targets]
    results = {
        "jax": jax.__version__,
        "device": f"{jax.devices()[0].device_kind}, {len(jax.devices())} device",
        "command": "python benchmarks/attention.py",
        "memory": kept + [row for target in targets for row in memory_rows(target)],
        "time": time_rows() if not words or "time" in words else old["time"],
    }
    path.write_text(json.dumps(results, indent=1) + "\n")
    (RESULTS / "attention.md").write_text(markdown(results))


if __name__ == "__main__":
    main(sys.argv[1:])
