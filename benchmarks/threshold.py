"""Why small programs are replayed: how far the replay and the memory model are from what is compiled, by size.

    python benchmarks/threshold.py         # for the CPU
    python benchmarks/threshold.py h200    # for a device that is not here

Each program is scheduled for 60 % of its replayed peak and compiled, at one size after another. Printed are predicted
over compiled peaks, median and worst of the programs, by the replay and by the model of the compiler, and the seconds
that the model took. The last results are in `results/threshold.md`: the replay is about as near at every size, and errs
to the safe side, but knows nothing of fusion. Below `Backend.smallest_modelled_bytes`, where that is worth nothing to
anybody, it saves the seconds.
"""

import dataclasses
import statistics
import sys
import time

import jax
import jax.numpy as jnp

from jaxremat.backends.devices import Device, resolve_target
from jaxremat.planner.prediction import predict
from jaxremat.planner.schedules import SchedulePlanner
from jaxremat.planning.executable import compile_program
from jaxremat.trace.primal import read_primal

SIZES = tuple(2**k for k in range(14, 27, 4))


def perceptron(layers, x):
    for w in layers:
        x = x + jnp.tanh(x @ w)
    return jnp.mean(x * x)


def gated(layers, x):
    for w in layers:
        h = x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)
        x = x + jax.nn.silu(h @ w) * h
    return jnp.mean(x * x)


def element_wise(layers, x):
    for w in layers:
        x = jnp.sin(x) * w[0] + jnp.exp(-x * x)
    return jnp.mean(x * x)


PROGRAMS = (perceptron, gated, element_wise)


def measured(program, size_bytes: int, device: Device) -> tuple[float, float, float, float]:
    """(replayed and modelled peak over the compiled one, seconds of the model, MiB of all values) of a plan for 60 %;
    `size_bytes` is about that of an array."""
    width = 32
    rows = size_bytes // 4 // width
    args = [jax.ShapeDtypeStruct((width, width), jnp.float32)] * 8, jax.ShapeDtypeStruct((rows, width), jnp.float32)
    primal = read_primal(program, args, 0, False)
    planner = SchedulePlanner(primal, device)
    outcome = planner.fit(int(0.6 * planner.plain.replayed_bytes))
    graph = outcome.problem.graph
    everything = dataclasses.replace(device, backend=dataclasses.replace(device.backend, smallest_modelled_bytes=0))
    compiled = compile_program(primal, outcome.form.emitted(primal, device), False, device).report.peak_bytes
    start = time.perf_counter()
    modelled = predict(outcome.problem.joint, graph, outcome.program, everything).peak_bytes
    seconds = time.perf_counter() - start
    return outcome.replayed_bytes / compiled, modelled / compiled, seconds, graph.value_bytes.sum() / 2**20


def main() -> None:
    device = resolve_target(sys.argv[1] if sys.argv[1:] else "cpu")
    print("| values, MiB | replayed: median | worst | modelled: median | worst | seconds |\n|---|---|---|---|---|---|")
    for size in SIZES:
        *ratios, seconds, mebibytes = zip(*(measured(program, size, device) for program in PROGRAMS))
        told = [f"{statistics.median(r):.2f} | {max(r, key=lambda x: abs(x - 1)):.2f}" for r in ratios]
        print(
            f"| {statistics.median(mebibytes):.1f} | " + " | ".join(told) + f" | {statistics.median(seconds):.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
