"""Small graphs and schedules, drawn at random or by hand, and what they mean by the definition alone."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import strategies as st

from jaxremat.graph.graph import Graph


def slow_replay(graph: Graph, schedule) -> tuple[list[set[int]], list[int]]:
    """(live values, live bytes) at each step, by the definition alone; raises ValueError for what cannot run."""
    steps = [int(node) for node in schedule]
    if set(steps) != set(range(graph.num_nodes)):
        raise ValueError("some node never runs, or is none")
    makes = lambda value: [t for t, node in enumerate(steps) if node == graph.producer[value]]
    reads = lambda value: [t for t, node in enumerate(steps) if value in graph.values_read[node]]
    live: list[set[int]] = [set() for _ in steps]
    for value in range(graph.num_values):
        made = makes(value)
        if any(t <= made[0] for t in reads(value)):
            raise ValueError(f"value {value} is read before it is made")
        for first, again in itertools.pairwise([*made, len(steps)]):
            is_last = again == len(steps)
            ends = [t for t in reads(value) if first < t < again] + [first]
            last = len(steps) - 1 if is_last and graph.is_output[value] else max(ends)
            for t in range(first, last + 1):
                live[t].add(value)
    held = [sum(int(graph.value_bytes[value]) for value in values) for values in live]
    return live, [graph.resident_bytes + h + int(graph.workspace_bytes[node]) for h, node in zip(held, steps)]


@st.composite
def graphs(draw, most_nodes=7, backward=False, pinned=False):
    """Random graphs, several values per node or none; with `backward`, a joint graph: its last nodes come after; with
    `pinned`, some nodes have an effect."""
    n = draw(st.integers(2 if backward else 1, most_nodes))
    numbers = lambda high, size: np.asarray(
        draw(st.lists(st.integers(0, high), min_size=size, max_size=size)), np.int64
    )
    producer = np.repeat(np.arange(n), [draw(st.sampled_from([0, 1, 1, 1, 2])) for _ in range(n)]).astype(np.int32)
    first_backward = draw(st.integers(1, n - 1)) if backward else n
    late = np.arange(n) >= first_backward
    pairs = [(v, k) for k in range(n) for v in range(producer.size) if producer[v] < k]
    reads = [pair for pair in pairs if draw(st.integers(0, 2)) == 0]
    return Graph(
        costs=numbers(4, n).astype(float),
        workspace_bytes=numbers(2, n),
        value_bytes=numbers(6, producer.size),
        producer=producer,
        reads=np.asarray(reads, np.int32).reshape(-1, 2),
        is_output=numbers(4, producer.size) == 4,
        resident_bytes=draw(st.integers(0, 3)),
        backward=late,
        pinned=numbers(5, n) == 5 if pinned else np.zeros(n, bool),
    )


@st.composite
def schedules(draw, graph: Graph, most_repeats=5):
    """Random schedules that can run: nodes in any order that their inputs allow, some of them again."""
    steps: list[int] = []
    missing, repeats = set(range(graph.num_nodes)), draw(st.integers(0, most_repeats))
    producers = [{int(graph.producer[v]) for v in values} for values in graph.values_read]
    while missing or repeats:
        ready = [node for node in range(graph.num_nodes) if producers[node] <= set(steps)]
        fresh = [node for node in ready if node in missing]
        pool = fresh if not repeats or (fresh and draw(st.booleans())) else [node for node in ready if node in steps]
        if not pool:
            pool = fresh
        node = draw(st.sampled_from(pool))
        repeats -= node not in missing
        missing.discard(node)
        steps.append(node)
    return steps


def gradient_chain(length: int, value_bytes=8, pinned: tuple[int, ...] = (), widths=None) -> Graph:
    """Layers and their backward: layer i reads the one before, its backward reads that and the cotangent.

    Args:
      length: layers, nodes 0..length - 1, the last one an output; the backward of layer i is node 2 * length - 1 - i.
      value_bytes: bytes of every value.
      pinned: layers that have an effect.
      widths: bytes of each layer's value, instead.
    """
    n = 2 * length
    reads = {(i, i + 1) for i in range(n - 1)} | {(i - 1, n - 1 - i) for i in range(1, length)}
    sizes = np.full(n, value_bytes, np.int64)
    if widths is not None:
        sizes[:length] = widths
    return Graph(
        costs=np.ones(n),
        workspace_bytes=np.zeros(n, np.int64),
        value_bytes=sizes,
        producer=np.arange(n, dtype=np.int32),
        reads=np.asarray(sorted(reads, key=lambda read: (read[1], read[0])), np.int32),
        is_output=np.isin(np.arange(n), (length - 1, n - 1)),
        backward=np.arange(n) >= length,
        pinned=np.isin(np.arange(n), pinned),
    )


def random_joint_graph(rng: np.random.Generator, forward=20, pinned=0) -> Graph:
    """A forward with fan-out and several values per node, and a backward that mirrors it and reads every value."""
    producer = np.repeat(np.arange(forward), rng.choice([1, 1, 2], forward))
    reads: set[tuple[int, int]] = set()
    of = lambda node: np.flatnonzero(producer == node).tolist()
    for node in range(1, forward):
        reads |= {(v, node) for u in {node - 1, int(rng.integers(node))} for v in of(u) if rng.random() < 0.7}
    backward_nodes = np.arange(forward, 2 * forward)
    values = np.concatenate([producer, backward_nodes])
    gradient = {node: producer.size + i for i, node in enumerate(backward_nodes)}
    for node in backward_nodes.tolist():
        layer = 2 * forward - 1 - node
        reads |= {(v, node) for v in of(layer) if rng.random() < 0.5}
        reads |= {(v, node) for v, reader in list(reads) if reader == layer}
        if node > forward:
            reads.add((gradient[node - 1], node))
    unread = set(range(producer.size)) - {v for v, _ in reads}
    reads |= {(v, 2 * forward - 1 - int(producer[v])) for v in unread}
    with_effects = rng.choice(forward, pinned, replace=False)
    return Graph(
        costs=rng.integers(1, 9, 2 * forward).astype(float),
        workspace_bytes=rng.integers(0, 4, 2 * forward),
        value_bytes=rng.integers(1, 30, values.size),
        producer=values.astype(np.int32),
        reads=np.asarray(sorted(reads, key=lambda read: (read[1], read[0])), np.int32),
        is_output=np.isin(np.arange(values.size), (producer.size - 1, values.size - 1)),
        resident_bytes=7,
        backward=np.arange(2 * forward) >= forward,
        pinned=np.isin(np.arange(2 * forward), with_effects),
    )


def runs(schedule, graph: Graph) -> np.ndarray:
    """[N] how often each node runs."""
    return np.bincount(schedule, minlength=graph.num_nodes)
