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

from collections.abc import Callable, Sequence

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
    return CutNetwork(graph, run_price, needed).cheapest(keep_price, must_keep)


class CutNetwork:
    """The network of a graph's cuts: from one price to another, only its capacities change.

    Args:
      graph, run_price, needed: as in `cheapest_cut`.
    """

    def __init__(self, graph: Graph, run_price: np.ndarray, needed: np.ndarray) -> None:
        n, v = graph.num_nodes, graph.num_values
        source, sink = n + v, n + v + 1
        self._graph = graph
        self._source = source
        self._forward_node = ~graph.backward
        self._forward_value = self._forward_node[graph.producer]
        self._may_run = np.isfinite(run_price)
        self._run_price = np.where(self._may_run, run_price, 0.0)
        self._wanted = needed & self._forward_value
        self._values, self._nodes = np.flatnonzero(self._forward_value), np.flatnonzero(self._forward_node)
        read_value, read_node = graph.reads[self._forward_node[graph.reads[:, 1]]].T
        wanted = np.flatnonzero(self._wanted)
        to_sink = lambda size: np.full(size, sink)
        arcs = [
            (np.full(wanted.size, source), n + wanted),
            (read_node, n + read_value),
            (self._nodes, to_sink(self._nodes.size)),
            (n + self._values, graph.producer[self._values]),
            (n + self._values, to_sink(self._values.size)),
        ]
        rows, columns = (np.concatenate(part).astype(np.int64) for part in zip(*arcs))
        self._pattern, self._place = _with_reverse_arcs(rows, columns, n + v + 2)
        self._unlimited = wanted.size + read_node.size

    def cheapest(self, keep_price: np.ndarray, must_keep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As `cheapest_cut`, for one way to price what is kept."""
        n, producer = self._graph.num_nodes, self._graph.producer
        reached = self._source_side(self._capacities(keep_price, must_keep))
        again = reached[:n] & self._forward_node
        available = reached[n : self._source] & self._forward_value
        return available & (must_keep | ~again[producer]), again

    def _capacities(self, keep_price: np.ndarray, must_keep: np.ndarray) -> np.ndarray:
        """One per arc, in whole parts of the price of a cut that is known."""
        only_kept = self._forward_value & (must_keep | ~self._may_run[self._graph.producer])
        keep_all = keep_price[self._wanted].sum()
        run_all = self._run_price[self._forward_node].sum() + keep_price[only_kept].sum()
        scale = _LARGEST_FLOW / 2 / (min(keep_all, run_all) or keep_all or 1.0)  # both are cuts: none finite saturates
        keep = np.minimum(np.ceil(keep_price * scale), _LARGEST_FLOW)[self._values]
        run = np.where(self._may_run, np.minimum(np.ceil(self._run_price * scale), _LARGEST_FLOW), _LARGEST_FLOW)
        forced = must_keep[self._values]
        unlimited = np.full(self._unlimited, _LARGEST_FLOW)
        return np.concatenate([unlimited, run[self._nodes], np.where(forced, 0, keep), np.where(forced, keep, 0)])

    def _source_side(self, capacities: np.ndarray) -> np.ndarray:
        """[N + V + 2] bool: what can be reached from the source once no more flows."""
        network = self._pattern
        network.data[self._place] = capacities
        flow = scipy.sparse.csgraph.maximum_flow(network, self._source, self._source + 1).flow
        open_arcs = network.data > flow.data
        before = np.concatenate([[0], np.cumsum(open_arcs)])
        ends = network.indices[open_arcs]
        residual = scipy.sparse.csr_matrix((np.ones(ends.size), ends, before[network.indptr]), shape=network.shape)
        reached = np.zeros(network.shape[0], bool)
        reached[scipy.sparse.csgraph.breadth_first_order(residual, self._source, return_predecessors=False)] = True
        return reached


def cut_at_each(prices: Sequence[float], cut_at: Callable[[float], np.ndarray]) -> list[np.ndarray]:
    """The cut at each of some ascending prices per byte.

    What a cut costs is linear in the price, so one that is the cheapest at two prices is so at all between: those are
    not asked for.
    """
    found = {k: cut_at(prices[k]) for k in sorted({0, len(prices) - 1})}
    spans = [(0, len(prices) - 1)]
    while spans:
        low, high = spans.pop()
        if np.array_equal(found[low], found[high]):
            found.update((k, found[low]) for k in range(low + 1, high))
        elif high - low > 1:
            middle = (low + high) // 2
            found[middle] = cut_at(prices[middle])
            spans += [(low, middle), (middle, high)]
    return [found[k] for k in range(len(prices))]


def _with_reverse_arcs(rows: np.ndarray, columns: np.ndarray, size: int) -> tuple[scipy.sparse.csr_matrix, np.ndarray]:
    """(a matrix with an entry for every arc and its reverse, which is how `maximum_flow` lays flows out; the place of
    each arc among its entries)."""
    arcs, reverse = rows * size + columns, columns * size + rows
    entries = np.unique(np.concatenate([arcs, reverse]))
    row, column = np.divmod(entries, size)
    starts = np.searchsorted(row, np.arange(size + 1))
    data = np.zeros(entries.size, np.int32)
    matrix = scipy.sparse.csr_matrix((data, column.astype(np.int32), starts.astype(np.int32)), shape=(size, size))
    return matrix, np.searchsorted(entries, arcs)
