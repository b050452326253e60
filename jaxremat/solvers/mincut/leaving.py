"""What a forward leaves to its backward, within a number of bytes."""

from __future__ import annotations

import numpy as np

from jaxremat.graph.graph import Graph
from jaxremat.graph.scheduled import schedule_program
from jaxremat.solvers.mincut.boundary import BoundarySearch, SearchPoint
from jaxremat.solvers.mincut.layout import Layout, by_cost, in_order, lay_out

_REFINEMENTS = 6  # halvings of the ratio between two prices, 3.2: to 2 %
_PRICE_OF_NOTHING = 4.0  # in whole programs per byte: more than running everything again


def layout_leaving(graph: Graph, saved_bytes: int) -> Layout:
    """The cheapest layout whose forward leaves at most so many bytes to the backward, inputs aside; the one that leaves
    the fewest where that is more.

    It is laid out as `jax.checkpoint` does it: all that runs again runs at the start of the backward. What the forward
    gives out may be made again, too: the caller may have no further use for it.
    """
    plain = in_order(graph)
    if left_bytes(graph, plain) <= saved_bytes:
        return plain
    search = BoundarySearch(graph, keeps_outputs=False)
    tried = {price: search.at(SearchPoint(price)) for price in search.prices}
    fewer = [price for price, layout in tried.items() if left_bytes(graph, layout) <= saved_bytes]
    if not fewer:
        return _recomputing_first(graph, search.at(SearchPoint(float(_PRICE_OF_NOTHING * graph.costs.sum()))))
    enough = min(fewer, key=lambda price: by_cost(tried[price]))
    too_low = max((price for price in tried if price < enough and price not in fewer), default=0.0)
    best = tried[enough]
    for _ in range(_REFINEMENTS if too_low else 0):
        middle = float(np.sqrt(too_low * enough))
        layout = search.at(SearchPoint(middle))
        fits = left_bytes(graph, layout) <= saved_bytes
        too_low, enough, best = (too_low, middle, layout) if fits else (middle, enough, best)
    return _recomputing_first(graph, best)


def left_bytes(graph: Graph, layout: Layout) -> int:
    """Bytes that the forward of a layout leaves to its backward, inputs aside."""
    saved = schedule_program(graph, layout.steps, backward_start=layout.start, barriers=()).saved
    return int(graph.value_bytes[saved].sum())


def _recomputing_first(graph: Graph, layout: Layout) -> Layout:
    forward, tail = layout.steps[: layout.start], layout.steps[layout.start :]
    late = graph.backward[tail]
    return lay_out(graph, np.concatenate([forward, np.unique(tail[~late]), tail[late]]), layout.start)
