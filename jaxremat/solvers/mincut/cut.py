"""Which forward values to keep: an exact minimum cut.

Every forward value that the backward reads must be kept, or recomputed from values that are kept or recomputed.
With a price on keeping each value and on running each node again, the cheapest choice is a minimum cut: nodes a(v)
("v is available in the backward") and r(i) ("node i runs again"), arcs

    source -> a(v)      infinite    where the backward reads v,
    a(v)   -> r(i)      keep price  where node i produces v,
    r(i)   -> sink      run price,
    r(i)   -> a(u)      infinite    where node i reads u.

Cut arcs a(v) -> r(i) are kept values, cut arcs r(i) -> sink are nodes that run again. For one price per byte the cut
is a point on the lower convex hull of (bytes kept, time added); sweeping the price walks the whole hull.

The cuts are found by scipy's maximum flow: a first-order method in JAX, mapped over prices, finds cuts of the same
price and takes several times as long (`benchmarks/jax_cuts.py`, with its table in `benchmarks/results`).

The closure construction is Picard's (1976); PyTorch's min-cut partitioner (functorch) cuts the same kind of graph
with heuristic capacities and without a time axis.
"""

from __future__ import annotations

import numpy as np
import scipy

from jaxremat.graph.graph import Graph

_LARGEST_FLOW = 2**30  # scipy counts flow in int32


def cheapest_cut(
    graph: Graph, keep_price: np.ndarray, run_price: np.ndarray, needed: np.ndarray, must_keep: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The cheapest way to make forward values available to the backward.

    Args:
      graph: the joint graph.
      keep_price: [V] price of keeping each value.
      run_price: [N] price of running each forward node again; infinite where it must not.
      needed: [V] forward values that must be available.
      must_keep: [V] values that are kept whenever they are available.

    Returns:
      (kept [V] bool, again [N] bool).
    """
    n, v = graph.num_nodes, graph.num_values
    source, sink = n + v, n + v + 1
    forward_node = ~graph.backward
    forward_value = forward_node[graph.producer]
    may_run = np.isfinite(run_price)
    finite_price = np.where(may_run, run_price, 0.0)
    only_kept = forward_value & (must_keep | ~may_run[graph.producer])
    keep_all = keep_price[needed & forward_value].sum()
    run_all = finite_price[forward_node].sum() + keep_price[only_kept].sum()
    scale = _LARGEST_FLOW / 2 / (min(keep_all, run_all) or keep_all or 1.0)  # both are cuts: none finite saturates
    unlimited = np.int64(_LARGEST_FLOW)
    keep = np.minimum(np.ceil(keep_price * scale), unlimited)
    run = np.where(may_run, np.minimum(np.ceil(finite_price * scale), unlimited), unlimited)
    values, nodes = np.flatnonzero(forward_value), np.flatnonzero(forward_node)
    wanted = np.flatnonzero(needed & forward_value)
    read_value, read_node = graph.reads.T
    inner = forward_node[read_node]
    producer = graph.producer[values]
    forced = must_keep[values]
    arcs = [
        (np.full(wanted.size, source), n + wanted, np.full(wanted.size, unlimited)),
        (n + values[~forced], producer[~forced], keep[values[~forced]]),
        (n + values[forced], np.full(int(forced.sum()), sink), keep[values[forced]]),
        (nodes, np.full(nodes.size, sink), run[nodes]),
        (read_node[inner], n + read_value[inner], np.full(int(inner.sum()), unlimited)),
    ]
    rows, columns, capacity = (np.concatenate(part) for part in zip(*arcs))
    network = scipy.sparse.csr_matrix((capacity.astype(np.int32), (rows, columns)), shape=(n + v + 2, n + v + 2))
    reached = _source_side(network, scipy.sparse.csgraph.maximum_flow(network, source, sink).flow, source)
    again = reached[:n] & forward_node
    available = reached[n : n + v] & forward_value
    return available & (must_keep | ~again[graph.producer]), again


def _source_side(network: scipy.sparse.csr_matrix, flow: scipy.sparse.csr_matrix, source: int) -> np.ndarray:
    residual = (network - flow).tocsr()
    residual.data[residual.data < 0] = 0
    residual.eliminate_zeros()
    reached = np.zeros(network.shape[0], bool)
    reached[scipy.sparse.csgraph.breadth_first_order(residual, source, return_predecessors=False)] = True
    return reached
