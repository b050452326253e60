"""The layers of a gradient program: a contraction, what it reads that no contraction made, and what follows up to the
next contraction. People who name no modules put their checkpoints around them."""

from __future__ import annotations

import numpy as np

from jaxremat.graph.graph import Graph


def layers_of(graph: Graph, contracts: np.ndarray) -> np.ndarray:
    """[N] number of the layer that each forward node lies in; -1 for backward nodes, and where nothing contracts.

    Args:
      graph: a joint graph.
      contracts: [N] bool, the nodes that are contractions.
    """
    forward = ~graph.backward
    begun = np.cumsum(contracts & forward) - 1
    follows = _follow(graph, contracts & forward).tolist()
    layer = np.where(follows, begun, np.minimum(begun + 1, begun[-1])).tolist()
    reader = [graph.num_nodes] * graph.num_nodes
    producer = graph.producer.tolist()
    for value, node in graph.reads[forward[graph.reads[:, 1]]][::-1].tolist():
        source = producer[value]
        if not follows[source]:
            layer[source] = reader[source] = min(reader[source], layer[node])
    return np.where(forward, layer, -1)


def _follow(graph: Graph, contracts: np.ndarray) -> np.ndarray:
    """[N] bool: contractions, and what reads something that one of them led to."""
    follows, producer = contracts.tolist(), graph.producer.tolist()
    for value, node in graph.reads.tolist():
        follows[node] = follows[node] or follows[producer[value]]
    return np.asarray(follows, bool)


def entering_layers(graph: Graph, layer: np.ndarray) -> np.ndarray:
    """[V] bool: forward values that are read in another layer ([N]) than the one that made them."""
    enters = np.zeros(graph.num_values, bool)
    value, node = graph.reads[~graph.backward[graph.reads[:, 1]]].T
    enters[value[layer[node] != layer[graph.producer[value]]]] = True
    return enters
