"""Which form keeps its saving under which flag of JAX and XLA, cell by cell.

    python benchmarks/fence.py              # the CPU
    python benchmarks/fence.py h200         # a device that is not here
    python benchmarks/fence.py tpu-v5e

Each cell compiles, in a process of its own, the gradient of a few layers that was planned for 70 % of its plain peak,
and prints the share that is compiled; in the last row the program of each form is inside JAX's `program_order`. The
last results are in `results/fence.md`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

PROGRAM = """
import json, sys
import jax, jax.numpy as jnp
import jaxremat
from jaxremat.compiled.compile import compile_gradient

target, order = sys.argv[1], sys.argv[2] == "order"

def loss(ws, x):
    for w in ws:
        x = x + jnp.tanh(x @ w)
    return jnp.mean(x**2)

def ordered(fun):
    if not order:
        return fun
    from jax.experimental.overlap import program_order
    return program_order(fun, enforce=True)

depth, width, rows = (6, 1024, 65536) if target.startswith("tpu") else (12, 128, 16384)
shape = lambda *dims: jax.ShapeDtypeStruct(dims, jnp.float32)
args = [shape(width, width)] * depth, shape(rows, width)
plain = compile_gradient(loss, args, target=target).peak_bytes
shares = {}
for form in ("schedule", "segments", "names"):
    try:
        plan = jaxremat.plan(loss, *args, budget=int(0.7 * plain), emit=form, verify="replay", target=target)
        shares[form] = f"{compile_gradient(ordered(plan.apply(loss)), args, target=target).peak_bytes / plain:.2f}"
    except jaxremat.BudgetError:
        shares[form] = "refused"
    except Exception as error:
        shares[form] = type(error).__name__
print("RESULT", json.dumps(shares))
"""

REMAT3 = {"JAX_REMAT3": "1"}
FLAGS: dict[str, dict[str, str]] = {
    "default": {},
    "JAX_REMAT3=1": REMAT3,
    "JAX_REMAT_BARRIER_NO_COTANGENTS=1": {"JAX_REMAT_BARRIER_NO_COTANGENTS": "1"},
    "both": {**REMAT3, "JAX_REMAT_BARRIER_NO_COTANGENTS": "1"},
    **{f"JAX_MEMORY_FITTING_LEVEL={level}": {"JAX_MEMORY_FITTING_LEVEL": level} for level in ("O0", "O1", "O3")},
    **{f"JAX_OPTIMIZATION_LEVEL={level}": {"JAX_OPTIMIZATION_LEVEL": level} for level in ("O0", "O1", "O3")},
    "both, in program_order": {**REMAT3, "JAX_REMAT_BARRIER_NO_COTANGENTS": "1"},
}
OF_TPU = {
    "--xla_tpu_aggressive_opt_barrier_removal=true": {
        "LIBTPU_INIT_ARGS": "--xla_tpu_aggressive_opt_barrier_removal=true"
    }
}


def shares_of(target: str, flag: str, environment: dict[str, str]) -> dict[str, str]:
    """The compiled share of each form in one cell's process."""
    order = "order" if "program_order" in flag else "as it is"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, target, order],
        env={"JAX_PLATFORMS": "cpu", **os.environ, **environment},
        capture_output=True,
        text=True,
    )
    told = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not told:
        return dict.fromkeys(("schedule", "segments", "names"), done.stderr.strip().splitlines()[-1][:60])
    return json.loads(told[-1].removeprefix("RESULT "))


def main(target: str = "cpu") -> None:
    print(f"| {target} | schedule | segments | names |\n|---|---|---|---|")
    cells = {"default": {}, **OF_TPU} if target.startswith("tpu") else FLAGS
    for flag, environment in cells.items():
        shares = shares_of(target, flag, environment)
        print(f"| {flag} | {' | '.join(shares.values())} |", flush=True)


main(*sys.argv[1:])
