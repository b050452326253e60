"""Minimum cuts in JAX beside scipy's maximum flow: quality and seconds on joint graphs, for many prices at once.

    python benchmarks/jax_cuts.py [--iterations 300] [--out benchmarks/results/jax_cuts]

The cut is the linear program min sum_v keep_v max(a_v - r_producer(v), 0) + sum_i run_i r_i with a_v = 1 where the
backward reads v, and r_i <= a_u where node i reads u. Its dual has one multiplier per arc; the primal-dual hybrid
gradient method (Chambolle and Pock, 2011) solves both, here jitted and mapped over prices. Every threshold of the
fractional solution is a cut, and the best of ten is taken. "Gap" is that cut's price over the exact one, in per cent.

Then JAX goes on from where scipy ended: FastSA anneals the schedule that the search by cuts found, for parts of the
peak. Both columns are extra cost in per cent of the program's, with CPU seconds; compilation is left out.
"""

import argparse
import functools
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from models import MODELS

import jaxremat
from jaxremat.solvers.deadline import Deadline
from jaxremat.solvers.fastsa import FastSA
from jaxremat.solvers.mincut.cut import cheapest_cut
from jaxremat.solvers.mincut.structure import Structure

THRESHOLDS = np.linspace(0.05, 0.95, 10)
FACTORS = np.logspace(-2, 2.5, 10)


def mlp(depth: int, width: int = 64, rows: int = 4096) -> jaxremat.Graph:
    def loss(layers, x):
        for up, down in layers:
            h = x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)
            x = x + jax.nn.gelu(h @ up) @ down
        return jnp.mean(x * x)

    shape = lambda *dims: jax.ShapeDtypeStruct(dims, jnp.float32)
    layers = [(shape(width, 4 * width), shape(4 * width, width))] * depth
    return jaxremat.trace(loss, layers, shape(rows, width), target="cpu")


def arcs_of(graph: jaxremat.Graph) -> dict[str, np.ndarray]:
    """What the method needs of a graph: forward values and who makes them, and reads between forward nodes."""
    forward = ~graph.backward
    inner = forward[graph.reads[:, 1]]
    value, reader = graph.reads[inner].T
    needed = Structure(graph).needed
    return dict(value=value, reader=reader, needed=needed, forward=forward, producer=graph.producer)


@functools.partial(jax.jit, static_argnames="iterations")
def fractional(keep, run, value, reader, needed, forward, producer, iterations):
    """[N] in [0, 1]: how far each node runs again, for one price."""
    made = forward[producer]
    step = 0.9 / jnp.sqrt(2.0 * (1 + jnp.bincount(value, length=keep.size).max()))

    def body(_, state):
        a, r, keeps, reads = state
        pull_a = jnp.zeros_like(a).at[value].add(-reads) + keeps
        pull_r = jnp.zeros_like(r).at[producer].add(-keeps).at[reader].add(reads) + run
        new_a = jnp.where(needed, 1.0, jnp.clip(a - step * pull_a, 0.0, 1.0))
        new_r = jnp.where(forward, jnp.clip(r - step * pull_r, 0.0, 1.0), 0.0)
        far_a, far_r = 2 * new_a - a, 2 * new_r - r
        new_keeps = jnp.where(made, jnp.clip(keeps + step * (far_a - far_r[producer]), 0.0, keep), 0.0)
        return new_a, new_r, new_keeps, jnp.maximum(reads + step * (far_r[reader] - far_a[value]), 0.0)

    start = needed.astype(jnp.float32), jnp.zeros_like(run), jnp.zeros_like(keep), jnp.zeros(value.size)
    return jax.lax.fori_loop(0, iterations, body, start)[1]


def price_of(graph, arcs, again, keep, run) -> float:
    """What a cut costs, made one: what nodes that run again read is available, and kept where its node does not run."""
    available = arcs["needed"].copy()
    available[arcs["value"][again[arcs["reader"]]]] = True
    return float(keep[available & ~again[graph.producer] & arcs["forward"][graph.producer]].sum() + run[again].sum())


def measure(name: str, graph: jaxremat.Graph, iterations: int) -> str:
    structure, arcs = Structure(graph), arcs_of(graph)
    run = np.where(graph.backward, 0.0, graph.costs)
    keeps = [factor * structure.mean_price * graph.value_bytes for factor in FACTORS]
    none = np.zeros(graph.num_values, bool)
    cheapest_cut(graph, keeps[0], graph.rerun_costs, structure.needed, none)  # loads scipy
    start = time.perf_counter()
    cuts = [cheapest_cut(graph, keep, graph.rerun_costs, structure.needed, none)[1] for keep in keeps]
    exact_seconds = time.perf_counter() - start
    exact = np.asarray([price_of(graph, arcs, cut, keep, run) for cut, keep in zip(cuts, keeps)])
    scale = 1 / run.max()
    solve = jax.vmap(functools.partial(fractional, **arcs, iterations=iterations), (0, None))
    given = jnp.asarray(np.stack(keeps) * scale, jnp.float32), jnp.asarray(run * scale, jnp.float32)
    start = time.perf_counter()
    compiled = jax.jit(solve).lower(*given).compile()
    compile_seconds = time.perf_counter() - start
    start = time.perf_counter()
    shares = np.asarray(compiled(*given))
    seconds = time.perf_counter() - start
    best = np.asarray(
        [min(price_of(graph, arcs, r > t, keep, run) for t in THRESHOLDS) for r, keep in zip(shares, keeps)]
    )
    gaps = 100 * (best / np.maximum(exact, 1e-30) - 1)
    return (
        f"| {name} | {graph.num_nodes} | {exact_seconds:.3f} | {compile_seconds:.2f} | {seconds:.3f} "
        f"| {np.median(gaps):.2f} | {gaps.max():.2f} |"
    )


def annealed(name: str, graph: jaxremat.Graph, share: float) -> str:
    """What annealing gains on the schedule of the cuts."""
    plain = jaxremat.replay(graph, np.arange(graph.num_nodes))
    budget_bytes = int(share * plain.peak_bytes)
    start = time.process_time()
    cut = jaxremat.solve(graph, budget_bytes, "mincut")
    cut_seconds = time.process_time() - start
    search = dict(graph=graph, starts=[cut.schedule], budget_bytes=budget_bytes, seed=0, deadline=Deadline(None))
    FastSA(moves=1, reheats=1, reheat_moves=1).search(**search)  # compiles
    start = time.process_time()
    found = FastSA().search(**search)
    seconds = time.process_time() - start
    cost = min(cut.cost, found.cost) if found.peak_bytes <= budget_bytes else cut.cost
    extra = [100 * (each / plain.cost - 1) for each in (cut.cost, cost)]
    return f"| {name} | {share} | {extra[0]:.2f} / {cut_seconds:.1f} | {extra[1]:.2f} / {seconds:.1f} |"


def models() -> dict[str, jaxremat.Graph]:
    small = {f"MLP of {depth} blocks": mlp(depth) for depth in (6, 12)}
    made = {name: MODELS[name](lambda block: block) for name in ("GPT", "ResNet", "U-Net")}
    return small | {name: jaxremat.trace(loss, *args, target="cpu") for name, (loss, args) in made.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "jax_cuts")
    options = parser.parse_args()
    head = "graph | nodes | scipy, 10 prices, s | JAX, compilation, s | JAX, 10 prices, s | median gap % | worst gap %"
    lines = [f"| {head} |", "|" + "---|" * 7]
    for depth in (2, 6, 12, 48):
        lines.append(measure(f"MLP of {depth} blocks", mlp(depth), options.iterations))
        print(lines[-1], flush=True)
    lines += [
        "",
        "| program | share of the peak | cuts, % / CPU s | annealed from there, % / CPU s |",
        "|" + "---|" * 4,
    ]
    for name, graph in models().items():
        for share in (0.5, 0.35):
            lines.append(annealed(name, graph, share))
            print(lines[-1], flush=True)
    command = f"python benchmarks/jax_cuts.py --iterations {options.iterations}"
    text = "\n".join(lines) + f"\n\n`{command}`, on two shared CPU cores, one process.\n"
    options.out.with_suffix(".md").write_text(text)


if __name__ == "__main__":
    main()
