"""Why early bytes are a little dearer: extra time at several budgets, for several slopes of the price.

    python benchmarks/surcharge.py

Twelve equal layers of a multilayer perceptron with attention-like fan-out, as traced for a CPU: written out, where one
cut decides, and scanned, where iterations decide. A slope of 0 lets all layers change their mind at the same price, so
that budgets between are missed; a large one keeps late layers whatever they cost. Iterations are all held when the
backward begins, so that for them only the order counts, and a small slope does.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

import jaxremat
from jaxremat.backends.devices import resolve_target
from jaxremat.loops import decide
from jaxremat.planner.schedules import SchedulePlanner
from jaxremat.solvers.mincut import structure
from jaxremat.solvers.mincut.boundary import BoundarySearch, SearchPoint
from jaxremat.trace.primal import read_primal

SLOPES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
LAYERS = 12


def layer(x, weights):
    up, gate, down = weights
    h = x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)
    return x + (jax.nn.silu(h @ gate) * (h @ up)) @ down, None


def written_out(layers, x):
    for weights in layers:
        x, _ = layer(x, weights)
    return jnp.mean(x * x)


def scanned(stacked, x):
    return jnp.mean(jax.lax.scan(layer, x, stacked)[0] ** 2)


def shape(*dims: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(dims, jnp.float32)


def extra_of_cut(share: float) -> float:
    layers = [(shape(256, 1024), shape(256, 1024), shape(1024, 256))] * LAYERS
    graph = jaxremat.trace(written_out, layers, shape(8192, 256), target="cpu")
    found = BoundarySearch(graph).fit(int(share * BoundarySearch(graph).at(SearchPoint(0.0)).peak_bytes))
    return float("nan") if found is None else 100 * (found.cost / graph.costs.sum() - 1)


def extra_of_loop(share: float) -> float:
    stacked = (shape(LAYERS, 256, 1024), shape(LAYERS, 256, 1024), shape(LAYERS, 1024, 256))
    planner = SchedulePlanner(read_primal(scanned, (stacked, shape(8192, 256)), 0, False), resolve_target("cpu"))
    limit = int(share * planner.plain.replayed_bytes)
    found = planner.fit(limit)
    return 100 * (found.cost / planner.plain.cost - 1) if found.replayed_bytes <= limit else float("nan")


def sweep(name: str, module, constant: str, extra_percent: Callable[[float], float]) -> None:
    print(f"{name}\nslope " + " ".join(f"{share:>6.0%}" for share in SHARES) + "   mean")
    for slope in SLOPES:
        setattr(module, constant, slope)
        extra = [extra_percent(share) for share in SHARES]
        print(f"{slope:5.2f} " + " ".join(f"{e:6.2f}" for e in extra) + f" {sum(extra) / len(extra):6.2f}", flush=True)


def main() -> None:
    sweep("written out", structure, "_EARLY_SURCHARGE", extra_of_cut)
    structure._EARLY_SURCHARGE = 0.2
    sweep("scanned", decide, "_FIRST_ITERATION_SURCHARGE", extra_of_loop)


if __name__ == "__main__":
    main()
