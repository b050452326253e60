"""Why early bytes are a little dearer: extra time of one cut at several budgets, for several slopes of the price.

    python benchmarks/surcharge.py

Twelve equal layers of a multilayer perceptron with attention-like fan-out, as traced for a CPU. A slope of 0 lets all
layers change their mind at the same price, so that budgets between are missed; a large one keeps late layers whatever
they cost.
"""

import jax
import jax.numpy as jnp

import jaxremat
from jaxremat.solvers.mincut import structure
from jaxremat.solvers.mincut.boundary import BoundarySearch, SearchPoint

SLOPES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)


def loss(layers, x):
    for up, gate, down in layers:
        h = x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)
        x = x + (jax.nn.silu(h @ gate) * (h @ up)) @ down
    return jnp.mean(x * x)


def extra_percent(graph, budget_bytes: int) -> float:
    found = BoundarySearch(graph).fit(budget_bytes)
    return float("nan") if found is None else 100 * (found.cost / graph.costs.sum() - 1)


def main() -> None:
    shape = lambda *dims: jax.ShapeDtypeStruct(dims, jnp.float32)
    layers = [(shape(256, 1024), shape(256, 1024), shape(1024, 256)) for _ in range(12)]
    graph = jaxremat.trace(loss, layers, shape(8192, 256), target="cpu")
    peak_bytes = BoundarySearch(graph).at(SearchPoint(0.0)).peak_bytes
    print("slope " + " ".join(f"{share:>6.0%}" for share in SHARES) + "   mean")
    for slope in SLOPES:
        structure._EARLY_SURCHARGE = slope
        extra = [extra_percent(graph, int(share * peak_bytes)) for share in SHARES]
        print(f"{slope:5.2f} " + " ".join(f"{e:6.2f}" for e in extra) + f" {sum(extra) / len(extra):6.2f}")


if __name__ == "__main__":
    main()
