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
price in about as long, but compiles for longer than most searches take (`benchmarks/jax_cuts.py`, with its table in
`benchmarks/results`).

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

    What no cut of finite price parts is one vertex: the source and what the backward reads, a node and a value that no
    other node reads. What no recomputation could need is left out.

    Args:
      graph, run_price, needed: as in `cheapest_cut`.
    """

    def __init__(self, graph: Graph, run_price: np.ndarray, needed: np.ndarray) -> None:
        source = graph.num_nodes + graph.num_values
        sink = source + 1
        self._graph = graph
        self._forward_node = ~graph.backward
        self._forward_value = self._forward_node[graph.producer]
        self._may_run = np.isfinite(run_price)
        self._run_price = np.where(self._may_run, run_price, 0.0)
        self._wanted = needed & self._forward_value
        vertex, asked = self._vertices(source)
        leads = np.concatenate([asked, np.stack([vertex, graph.producer])], 1)
        reached = _reached(scipy.sparse.csr_matrix((np.ones(leads.shape[1]), leads), shape=(sink + 1,) * 2), source)
        reached[sink] = True
        asked = asked[:, reached[asked[0]]]
        self._unlimited = asked.shape[1]
        self._nodes = np.flatnonzero(reached[: graph.num_nodes])
        self._values = np.flatnonzero(reached[vertex] & self._forward_value)
        holders = vertex[self._values]
        kept = np.stack([holders, graph.producer[self._values]])
        arcs = np.concatenate([asked, _to(sink, self._nodes), kept, _to(sink, holders)], 1)
        number = np.cumsum(reached) - 1
        self._holders, self._source = number[holders], int(number[source])
        self._pattern, self._place = _with_reverse_arcs(number[arcs], int(number[sink]) + 1)
        self._networks: dict[int, _SideBySide] = {}

    def _vertices(self, source: int) -> tuple[np.ndarray, np.ndarray]:
        """([V] the vertex that each value is, [2, A] arcs from nodes to what they read, where that is another one)."""
        graph = self._graph
        value, node = graph.reads[self._forward_node[graph.reads[:, 1]]].T
        of_its_own = graph.num_nodes + np.arange(graph.num_values)
        vertex = np.where(self._wanted, source, of_its_own)
        alone = ~self._wanted[value] & (np.bincount(value, minlength=graph.num_values)[value] == 1)
        vertex[value[alone]] = node[alone]
        shared = vertex[value] == of_its_own[value]
        return vertex, np.stack([node[shared], vertex[value[shared]]])

    def cheapest(self, keep_price: np.ndarray, must_keep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As `cheapest_cut`, for one way to price what is kept."""
        return self.cheapest_of_each([(keep_price, must_keep)])[0]

    def cheapest_of_each(
        self, questions: Sequence[tuple[np.ndarray, np.ndarray]]
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """The same for several ways, pairs (`keep_price`, `must_keep`), side by side in one network: most of what scipy
        takes for a small one does not grow with it."""
        reached = self._source_sides([self._capacities(*question) for question in questions])
        return [self._cut(side, must_keep) for side, (_, must_keep) in zip(reached, questions)]

    def _cut(self, reached: np.ndarray, must_keep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What a cut means of which the vertices on the source's side are known."""
        again, available = np.zeros(self._graph.num_nodes, bool), np.zeros(self._graph.num_values, bool)
        again[self._nodes] = reached[: self._nodes.size]
        available[self._values] = reached[self._holders]
        return available & (must_keep | ~again[self._graph.producer]), again

    def _capacities(self, keep_price: np.ndarray, must_keep: np.ndarray) -> np.ndarray:
        """One per entry of the network, in whole parts of the price of a cut that is known."""
        only_kept = self._forward_value & (must_keep | ~self._may_run[self._graph.producer])
        keep_all = keep_price[self._wanted].sum()
        run_all = self._run_price[self._forward_node].sum() + keep_price[only_kept].sum()
        scale = _LARGEST_FLOW / 2 / (min(keep_all, run_all) or keep_all or 1.0)  # both are cuts: none finite saturates
        keep = np.minimum(np.ceil(keep_price * scale), _LARGEST_FLOW)[self._values]
        run = np.where(self._may_run, np.minimum(np.ceil(self._run_price * scale), _LARGEST_FLOW), _LARGEST_FLOW)
        unlimited, forced = np.full(self._unlimited, _LARGEST_FLOW), must_keep[self._values]
        each = np.concatenate([unlimited, run[self._nodes], np.where(forced, 0, keep), np.where(forced, keep, 0)])
        return np.minimum(np.bincount(self._place, each, self._pattern.nnz), _LARGEST_FLOW)

    def _source_sides(self, capacities: Sequence[np.ndarray]) -> list[np.ndarray]:
        """[vertices] bool, of each: what can be reached from the source once no more flows."""
        number, inner = len(capacities), self._source
        if number not in self._networks:
            self._networks[number] = _SideBySide(self._pattern, number)
        network = self._networks[number]
        reached = network.source_side(capacities)
        ends = np.asarray([True, False])
        return [np.concatenate([reached[k * inner : (k + 1) * inner], ends]) for k in range(number)]


class _SideBySide:
    """Several networks of one pattern as one, with one source and one sink.

    Args:
      pattern: the arcs of each; its last two vertices are source and sink.
      number: how many there are.
    """

    def __init__(self, pattern: scipy.sparse.csr_matrix, number: int) -> None:
        inner = pattern.shape[0] - 2
        self._source = number * inner
        row, column = np.repeat(np.arange(inner + 2), np.diff(pattern.indptr)), pattern.indices
        between = (row >= inner) & (column >= inner)  # from the source to the sink: in every cut
        rows_of = lambda vertex: np.flatnonzero((row == vertex) & ~between)
        self._parts = [np.flatnonzero(row < inner), rows_of(inner), rows_of(inner + 1)]
        moved = lambda vertex, k: np.where(vertex < inner, vertex + k * inner, vertex - inner + self._source)
        rows, columns = (
            np.concatenate([moved(ends[part], k) for part in self._parts for k in range(number)])
            for ends in (row, column)
        )
        starts = np.searchsorted(rows, np.arange(self._source + 3)).astype(np.int32)
        data, shape = np.zeros(rows.size, np.int32), (self._source + 2,) * 2
        self._network = scipy.sparse.csr_matrix((data, columns.astype(np.int32), starts), shape=shape)

    def source_side(self, capacities: Sequence[np.ndarray]) -> np.ndarray:
        """[vertices] bool: what can be reached from the source once no more flows, the networks one after another."""
        network = self._network
        network.data[:] = np.concatenate([each[part] for part in self._parts for each in capacities])
        flow = scipy.sparse.csgraph.maximum_flow(network, self._source, self._source + 1).flow
        is_open = network.data > flow.data
        before, ends = np.concatenate([[0], np.cumsum(is_open)]), network.indices[is_open]
        residual = scipy.sparse.csr_matrix((np.ones(ends.size), ends, before[network.indptr]), shape=network.shape)
        return _reached(residual, self._source)


def cuts_at_each(
    prices: Sequence[float], number: int, cut_all: Callable[[Sequence[tuple[int, float]]], Sequence[np.ndarray]]
) -> list[list[np.ndarray]]:
    """The cuts of some networks, at each of some ascending prices per byte.

    What a cut costs is linear in the price, so one that is the cheapest at two prices is so at all between: those are
    not asked for.

    Args:
      prices: the prices.
      number: how many networks there are.
      cut_all: from pairs (network, price) to the cut of each.

    Returns:
      For each network, a cut per price.
    """
    found: dict[tuple[int, int], np.ndarray] = {}
    spans = [(network, 0, len(prices) - 1) for network in range(number)]
    wanted = [(network, end) for network, *ends in spans for end in dict.fromkeys(ends)]
    while wanted:
        found.update(zip(wanted, cut_all([(network, prices[k]) for network, k in wanted])))
        wanted, parted = [], spans
        spans = []
        for network, low, high in parted:
            if np.array_equal(found[network, low], found[network, high]):
                found.update(((network, k), found[network, low]) for k in range(low + 1, high))
            elif high - low > 1:
                middle = (low + high) // 2
                wanted.append((network, middle))
                spans += [(network, low, middle), (network, middle, high)]
    return [[found[network, k] for k in range(len(prices))] for network in range(number)]


def _to(end: int, starts: np.ndarray) -> np.ndarray:
    """[2, A] arcs from each start to one end."""
    return np.stack([starts, np.full(starts.size, end)])


def _reached(network: scipy.sparse.csr_matrix, start: int) -> np.ndarray:
    """[vertices] bool: what entries lead to from a vertex, itself included."""
    reached = np.zeros(network.shape[0], bool)
    reached[scipy.sparse.csgraph.breadth_first_order(network, start, return_predecessors=False)] = True
    return reached


def _with_reverse_arcs(ends: np.ndarray, size: int) -> tuple[scipy.sparse.csr_matrix, np.ndarray]:
    """(a matrix with an entry for every arc [2, A] and its reverse, which is how `maximum_flow` lays flows out; the
    place of each arc among its entries)."""
    rows, columns = ends
    arcs, reverse = rows * size + columns, columns * size + rows
    entries = np.unique(np.concatenate([arcs, reverse]))
    row, column = np.divmod(entries, size)
    starts = np.searchsorted(row, np.arange(size + 1))
    data = np.zeros(entries.size, np.int32)
    matrix = scipy.sparse.csr_matrix((data, column.astype(np.int32), starts.astype(np.int32)), shape=(size, size))
    return matrix, np.searchsorted(entries, arcs)
