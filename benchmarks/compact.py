"""The table of the CompAct paper in shapes: bytes of a compiled training step, for LLaMA of 60M to 1B parameters.

Full training, optax's GaLore and CompAct at n/2, n/4, n/8 (one projection per common input, and one per layer as in the
paper), each with Adam, bf16 computation over fp32 parameters, layers scanned, sequences of 256 tokens. Compiled from
shapes alone for this CPU and for an H200 that need not be there; nothing is run. `python benchmarks/compact.py` writes
`benchmarks/results/compact.json` and `compact.md`; words select sizes or targets.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Neither flag changes a buffer: no autotuning, which needs the device, and no time spent on the quality of the code.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_gpu_autotune_level=0 --xla_backend_optimization_level=0"
)

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding
from running import peak_bytes

from jaxremat.compact import CompAct

RESULTS = pathlib.Path(__file__).parent / "results"
BATCH, LENGTH, VOCABULARY = 32, 256, 32000
COMPRESSED = ("query", "key", "value", "gate", "up", "down")


@dataclasses.dataclass(frozen=True)
class Llama:
    """Width, MLP width, heads and layers of one of the paper's models."""

    width: int
    hidden: int
    heads: int
    layers: int


SIZES = {
    "60M": Llama(512, 1376, 8, 8),
    "130M": Llama(768, 2048, 12, 12),
    "350M": Llama(1024, 2736, 16, 24),
    "1B": Llama(2048, 5461, 32, 24),
}


def parameters(model: Llama):
    """Shapes of the fp32 parameters; `blocks` is stacked over layers."""
    n, m = model.width, model.hidden
    squares = {name: (n, n) for name in ("query", "key", "value", "out")}
    block = squares | {"gate": (n, m), "up": (n, m), "down": (m, n), "norm_1": (n,), "norm_2": (n,)}
    stacked = {name: (model.layers, *shape) for name, shape in block.items()}
    tree = {"blocks": stacked, "embedding": (VOCABULARY, n), "head": (n, VOCABULARY), "norm": (n,)}
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s, jnp.float32), tree, is_leaf=lambda s: isinstance(s, tuple))


def make_loss(model: Llama, share_inputs: bool):
    """Next-token loss. Without `share_inputs` a barrier makes the input of every product a value of its own."""

    def norm(x, gain):
        return x * lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) * gain.astype(x.dtype)

    def dense(x, w):
        own = x if share_inputs else lax.optimization_barrier(x)
        return own @ w.astype(x.dtype)

    def block(x, w):
        h = norm(x, w["norm_1"])
        q, k, v = (dense(h, w[name]).reshape(*h.shape[:2], model.heads, -1) for name in ("query", "key", "value"))
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) * (model.width // model.heads) ** -0.5
        scores = jnp.where(jnp.tril(jnp.ones(scores.shape[-2:], bool)), scores, -jnp.inf)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), v)
        x = x + mixed.reshape(x.shape) @ w["out"].astype(x.dtype)
        h = norm(x, w["norm_2"])
        return x + dense(jax.nn.silu(dense(h, w["gate"])) * dense(h, w["up"]), w["down"]), None

    def loss(params, tokens):
        x = params["embedding"].astype(jnp.bfloat16)[tokens]
        x = lax.scan(block, x, params["blocks"])[0]
        logits = norm(x, params["norm"]) @ params["head"].astype(x.dtype)
        return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32)[:, :-1], tokens[:, 1:]).mean()

    return loss


def plain_step(model: Llama, optimizer):
    loss = make_loss(model, True)

    def step(state, tokens):
        params, optimizer_state = state
        value, gradients = jax.value_and_grad(loss)(params, tokens)
        updates, optimizer_state = optimizer.update(gradients, optimizer_state, params)
        return (optax.apply_updates(params, updates), optimizer_state), value

    params = parameters(model)
    return step, (params, jax.eval_shape(optimizer.init, params))


def galore(rank: int):
    """optax's GaLore on every layer's matrices, one layer after the other; Adam on the rest."""
    one = optax.contrib.galore(1e-3, rank=rank)
    over_layers = optax.GradientTransformation(
        lambda params: lax.map(one.init, params),
        lambda updates, state, params: lax.map(lambda layer: one.update(*layer), (updates, state, params)),
    )

    def label(path, _):
        return "galore" if any(getattr(k, "key", None) in COMPRESSED for k in path) else "adam"

    labels = lambda params: jax.tree_util.tree_map_with_path(label, params)
    return optax.partition({"galore": over_layers, "adam": optax.adam(1e-3)}, labels)


def compact_step(model: Llama, divisor: int, share_inputs: bool):
    select = lambda path, leaf: path.split("/")[-1] in COMPRESSED
    compact = CompAct(make_loss(model, share_inputs), optax.adam(1e-3), rank=1 / divisor, select=select)
    return compact.step, jax.eval_shape(compact.init, parameters(model))


def variants(model: Llama):
    """(name, function that makes a step and its state) of every row."""
    yield "full", lambda: plain_step(model, optax.adam(1e-3))
    for divisor in (2, 4, 8):
        yield f"GaLore n/{divisor}", lambda d=divisor: plain_step(model, galore(model.width // d))
        yield f"CompAct n/{divisor}", lambda d=divisor: compact_step(model, d, True)
        yield f"CompAct n/{divisor}, own P per layer", lambda d=divisor: compact_step(model, d, False)


def compiled_bytes(step, state, device) -> int:
    """argument + output + temp - alias bytes of a step compiled for a device, its state donated."""
    tokens = jax.ShapeDtypeStruct((BATCH, LENGTH), jnp.int32)
    place = lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=SingleDeviceSharding(device))
    traced = jax.jit(step, donate_argnums=0).trace(*jax.tree.map(place, (state, tokens)))
    platform = "cuda" if device.platform in ("gpu", "cuda") else device.platform
    return peak_bytes(traced.lower(lowering_platforms=(platform,)).compile())


H200 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535 memory_bandwidth: 4800000000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 150000000000 shared_memory_per_block_optin: 232448 cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
runtime_version { major: 12 minor: 9 patch: 0 }
device_description_str: "NVIDIA H200"
"""


def device_of(target: str):
    if target == "cpu":
        return jax.devices("cpu")[0]
    return topologies.get_topology_desc(platform="cuda", topology="1x1x1", target_config=H200).devices[0]


def table(rows: list[dict]) -> str:
    """Markdown: a line per target and variant, GiB per size, and the part of full training's bytes."""
    full = {(r["target"], r["size"]): r["bytes"] for r in rows if r["variant"] == "full"}
    found = {(r["target"], r["variant"], r["size"]): r["bytes"] for r in rows}
    lines = [f"| target | GiB of a compiled step, batch {BATCH} x {LENGTH} | {' | '.join(SIZES)} |"]
    lines.append("|---" * (2 + len(SIZES)) + "|")
    for target, variant in dict.fromkeys((r["target"], r["variant"]) for r in rows):
        cells = []
        for size in SIZES:
            n_bytes, whole = found.get((target, variant, size)), full.get((target, size))
            share = f" ({n_bytes / whole:.2f})" if n_bytes and whole and variant != "full" else ""
            cells.append(f"{n_bytes / 2**30:.2f}{share}" if n_bytes else "")
        lines.append(f"| {target} | {variant} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(words: set[str]) -> None:
    for target in [t for t in ("cpu", "h200") if t in words or words.isdisjoint({"cpu", "h200"})]:
        for size in [s for s in SIZES if s in words or words.isdisjoint(SIZES)]:
            rows = []
            for name, make in variants(SIZES[size]):
                n_bytes = compiled_bytes(*make(), device_of(target))
                rows.append({"target": target, "size": size, "variant": name, "bytes": n_bytes})
                print(f"{target} {size} {name}: {n_bytes / 2**30:.2f} GiB", flush=True)
            record(rows)


def record(rows: list[dict]) -> None:
    """Merges rows into the committed results, and writes the table again."""
    path = RESULTS / "compact.json"
    known = json.loads(path.read_text())["rows"] if path.exists() else []
    merged = {(r["target"], r["size"], r["variant"]): r for r in known + rows}
    settings = {"jax": jax.__version__, "batch": BATCH, "length": LENGTH, "vocabulary": VOCABULARY}
    RESULTS.mkdir(exist_ok=True)
    in_order = [merged[key] for key in sorted(merged, key=lambda key: (key[0], list(SIZES).index(key[1])))]
    path.write_text(json.dumps({"settings": settings, "rows": in_order}, indent=1) + "\n")
    (RESULTS / "compact.md").write_text(table(in_order))


if __name__ == "__main__":
    main(set(sys.argv[1:]))
