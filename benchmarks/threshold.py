"""Why small programs are replayed: how far the replay and the memory model are from what is compiled, by size.

    python benchmarks/threshold.py

Each program is scheduled for 60 % of its replayed peak and compiled for the CPU, at one size after another. Printed are
predicted over compiled temporaries, median and worst of the programs, by the replay and by the model of the compiler.
`Backend.smallest_modelled_bytes` is the least size from which the model is the better of the two.
"""

import dataclasses
import statistics

import jax
import jax.numpy as jnp

from jaxremat.backends.devices import resolve_target
from jaxremat.graph.replay import replay
from jaxremat.planner.prediction import predict
from jaxremat.planner.schedules import SchedulePlanner
from jaxremat.planning.compilation import compile_program
from jaxremat.trace.joint import read_primal

SIZES = tuple(2**k for k in range(12, 27, 2))


def perceptron(layers, x):
    for w in layers:
        x = x + jnp.tanh(x @ w)
    return jnp.mean(x * x)


def gated(layers, x):
    for w in layers:
        h = x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)
        x = x + jax.nn.silu(h @ w) * h
    return jnp.mean(x * x)


def attention(layers, x):
    for w in layers:
        h = x @ w
        x = x + jax.nn.softmax(h @ h.T) @ h
    return jnp.mean(x * x)


def element_wise(layers, x):
    for w in layers:
        x = jnp.sin(x) * w[0] + jnp.exp(-x * x)
    return jnp.mean(x * x)


PROGRAMS = (perceptron, gated, attention, element_wise)


def ratios(program, size_bytes: int) -> tuple[float, float]:
    """(replayed, modelled) peak over the compiled one, of a plan for 60 %; `size_bytes` is about that of an array."""
    width = 32
    args = (
        [jax.ShapeDtypeStruct((width, width), jnp.float32)] * 8,
        jax.ShapeDtypeStruct((size_bytes // 4 // width, width), jnp.float32),
    )
    device = resolve_target("cpu")
    primal = read_primal(program, args, 0, False)
    planner = SchedulePlanner(primal, device)
    outcome = planner.fit(int(0.6 * planner.plain.replayed_bytes))
    problem = outcome.problem
    everything = dataclasses.replace(device, backend=dataclasses.replace(device.backend, smallest_modelled_bytes=0))
    compiled = compile_program(primal, outcome.form.emitted(primal, device), False, device).report.peak_bytes
    modelled = predict(problem.joint, problem.graph, outcome.program, everything).peak_bytes
    return replay(problem.graph, outcome.program.steps).peak_bytes / compiled, modelled / compiled


def main() -> None:
    print("array          replayed           modelled")
    for size in SIZES:
        each = [ratios(program, size) for program in PROGRAMS if program is not attention or size <= 2**20]
        told = [f"{statistics.median(r):6.2f} {max(r, key=lambda x: abs(x - 1)):6.2f}" for r in zip(*each)]
        print(f"{size:>10}  " + "     ".join(told), flush=True)


if __name__ == "__main__":
    main()
