"""A whole training step on the GPU of this machine, within part of its memory: as written, by hand, and planned.

    python benchmarks/whole_step.py                  # within a tenth of the memory; writes results/whole_step.md
    python benchmarks/whole_step.py --part 0.2

A language model of 16 scanned blocks, 1024 wide, with AdamW and a donated state; parameters are float32, the rest is
bfloat16. Each way runs in a process of its own, so that its allocator's peak is that of the step; before, all are
compiled side by side, to be found again in JAX's compilation cache.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from models import Scanned, Transformer
from running import compiled_once, peak_bytes

import jaxremat

RESULTS = Path(__file__).resolve().parent / "results"
LENGTH, STEPS = 1024, 20
WAYS = {
    "as written": None,
    "nn.remat on every block": None,
    'jaxremat.jit, budget="device"': "device",
    "jaxremat.jit, budget=0.5": 0.5,
}


def training(way: str, batch: int):
    """The jitted step, and the shapes of its state and tokens."""
    block = nn.remat(Transformer, prevent_cse=False) if way.startswith("nn.remat") else Transformer
    model, optimizer = Scanned(block, layers=16, width=1024), optax.adamw(1e-4)

    def loss(params, tokens):
        logits = model.apply(jax.tree.map(lambda p: p.astype(jnp.bfloat16), params), tokens).astype(jnp.float32)
        return optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], tokens[:, 1:]).mean()

    def train_step(state, tokens):
        value, grads = jax.value_and_grad(loss)(state["params"], tokens)
        updates, inner = optimizer.update(grads, state["optimizer"], state["params"])
        return {"params": optax.apply_updates(state["params"], updates), "optimizer": inner}, value

    def fresh(key, tokens):
        params = model.init(key, tokens)
        return {"params": params, "optimizer": optimizer.init(params)}

    tokens = jax.random.randint(jax.random.key(1), (batch, LENGTH), 0, 512)
    if (budget := WAYS[way]) is None:
        return jax.jit(train_step, donate_argnums=0), fresh, tokens
    return jaxremat.jit(train_step, donate_argnums=0, budget=budget), fresh, tokens


def run(way: str, batch: int, only_compile: bool) -> dict:
    """What a step takes; and what JAX or the library says where it does not fit."""
    told: dict = {}
    try:
        step, fresh, tokens = training(way, batch)
        shapes = jax.eval_shape(fresh, jax.random.key(0), tokens)
        told["peak_bytes"] = peak_bytes(step.lower(shapes, tokens).compile())
        if not only_compile:
            told |= train(step, jax.jit(fresh)(jax.random.key(0), tokens[:1]), tokens)
    except (jax.errors.JaxRuntimeError, jaxremat.BudgetError) as error:
        told["error"] = str(error).splitlines()[0].partition(" [")[0]
    return told


def train(step, state, tokens) -> dict:
    """Bytes that the allocator gave, the median time of a step, and the first and the last loss."""
    losses, seconds = [], []
    for _ in range(STEPS):
        start = time.perf_counter()
        state, loss = step(state, tokens)
        losses.append(float(loss))
        seconds.append(time.perf_counter() - start)
    stats = jax.devices()[0].memory_stats() or {}
    told = {"allocated_bytes": stats.get("peak_bytes_in_use", 0), "limit_bytes": stats.get("bytes_limit", 0)}
    return told | {"seconds": sorted(seconds)[STEPS // 2], "losses": [losses[0], losses[-1]]}


def measured(batch: int, cache: str) -> dict[str, dict]:
    """Every way: all compiled at once, then one after the other."""
    environment = os.environ | compiled_once(cache) | {"JAXREMAT_PLAN_CACHE": cache}
    start = lambda way, *more: subprocess.Popen(
        [sys.executable, __file__, "--way", way, "--batch", str(batch), *more],
        env=environment | ({"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} if more else {}),
        stdout=subprocess.PIPE,
        text=True,
    )
    for process in [start(way, "--only-compile") for way in WAYS]:
        process.communicate()
    return {way: json.loads(start(way).communicate()[0].splitlines()[-1]) for way in WAYS}


def to_markdown(rows: dict[str, dict], batch: int) -> str:
    lines = [f"| {batch} x {LENGTH} tokens | compiled | allocated | a step |", "|---|---|---|---|"]
    for way, row in rows.items():
        compiled = f"{row['peak_bytes'] / 2**30:.2f} GiB" if "peak_bytes" in row else ""
        given = f"{row['allocated_bytes'] / 2**30:.2f} GiB" if "seconds" in row else ""
        told = f"{1e3 * row['seconds']:.1f} ms" if "seconds" in row else row["error"]
        lines.append(f"| {way} | {compiled} | {given} | {told} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", default="0.1", help="of the device's memory that the runtime may take")
    parser.add_argument("--batches", type=int, nargs="*", default=(4, 12))
    parser.add_argument("--way", help=argparse.SUPPRESS)  # of a process that was started here
    parser.add_argument("--batch", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--only-compile", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        print(json.dumps(run(options.way, options.batch, options.only_compile)))
        return
    os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"] = options.part
    text = f"# A whole step within {options.part} of a GPU's memory\n\njax {jax.__version__}\n"
    with tempfile.TemporaryDirectory() as cache:
        for batch in options.batches:
            text += "\n" + to_markdown(measured(batch, cache), batch)
            print(text, flush=True)
    (RESULTS / "whole_step.md").write_text(text)


if __name__ == "__main__":
    main()
