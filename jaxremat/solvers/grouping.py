"""FastSA's node grouping: a smaller graph whose nodes are runs of several nodes in a row (Imanishi et al., appendix).

A node is worth fusing into its reader if it reads no more bytes than it makes: then nothing is gained by keeping its
output rather than its inputs. Deviations: a node with several readers is not copied into each of them, so that a
group costs what its members cost; outputs and pinned nodes are never fused; a value made and read inside a group is
workspace of the group.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxremat.graph.graph import Graph


@dataclasses.dataclass(frozen=True, eq=False)
class Grouping:
    """A coarse graph and what its nodes stand for.

    Attributes:
      graph: the coarse graph, in an executable order.
      members: for each coarse node, the nodes of the fine graph that it runs, in order.
    """

    graph: Graph
    members: tuple[tuple[int, ...], ...]

    def expand(self, schedule: np.ndarray) -> np.ndarray:
        """The fine schedule that a coarse schedule stands for."""
        return np.concatenate([np.asarray(self.members[group], np.int32) for group in schedule])


def group_nodes(graph: Graph) -> Grouping:
    """Fuses every node that has a single reader and reads no more bytes than it makes into that reader."""
    members: dict[int, list[int]] = {}
    for node in range(graph.num_nodes):
        own = [*members.pop(node, []), node]
        reader = _only_reader(graph, node)
        into = node if reader is None else reader
        members[into] = members.get(into, []) + own if into != node else own
    ordered = [tuple(members[last]) for last in sorted(members)]
    return Grouping(_coarse(graph, ordered), tuple(ordered))


def _only_reader(graph: Graph, node: int) -> int | None:
    """The node that a node may be fused into, if there is one."""
    values = graph.values_of[node]
    readers = {reader for value in values for reader in graph.readers[value]}
    if len(readers) != 1 or graph.pinned[node] or any(graph.is_output[value] for value in values):
        return None
    reader = readers.pop()
    read_bytes = sum(int(graph.value_bytes[value]) for value in graph.values_read[node])
    grows = read_bytes <= int(graph.node_bytes[node])
    return reader if grows and not graph.pinned[reader] else None


def _coarse(graph: Graph, groups: list[tuple[int, ...]]) -> Graph:
    """The graph of the groups: values that stay inside a group become its workspace."""
    group_of = np.zeros(graph.num_nodes, np.int64)
    for index, group in enumerate(groups):
        group_of[list(group)] = index
    reads = np.stack([graph.reads[:, 0], group_of[graph.reads[:, 1]]], 1)
    producer = group_of[graph.producer]
    crosses = reads[:, 1] != producer[reads[:, 0]]
    leaves = graph.is_output | (np.bincount(reads[:, 0], minlength=graph.num_values) == 0)
    leaves[reads[crosses, 0]] = True
    kept = np.flatnonzero(leaves)
    kept = kept[np.argsort(producer[kept], kind="stable")]
    new_id = np.full(graph.num_values, -1)
    new_id[kept] = np.arange(kept.size)
    outer = reads[crosses]
    outer = np.unique(np.stack([outer[:, 1], new_id[outer[:, 0]]], 1), axis=0)[:, ::-1]
    names = tuple(graph.names[group[-1]] for group in groups) if graph.names else ()
    return Graph(
        costs=np.bincount(group_of, graph.costs, len(groups)),
        workspace_bytes=np.asarray([_inner_bytes(graph, group, leaves) for group in groups], np.int64),
        value_bytes=graph.value_bytes[kept],
        producer=producer[kept].astype(np.int32),
        reads=np.ascontiguousarray(outer).astype(np.int32).reshape(-1, 2),
        is_output=graph.is_output[kept],
        resident_bytes=graph.resident_bytes,
        backward=np.asarray([graph.backward[group[-1]] for group in groups]),
        pinned=np.asarray([graph.pinned[list(group)].any() for group in groups]),
        names=names,
        rerun_surcharge=np.bincount(group_of, graph.rerun_surcharge, len(groups)),
    )


def _inner_bytes(graph: Graph, group: tuple[int, ...], leaves: np.ndarray) -> int:
    """The most bytes that values which never leave the group, and workspaces, take while it runs."""
    last_read: dict[int, int] = {}
    for step, node in enumerate(group):
        for value in (*graph.values_of[node], *graph.values_read[node]):
            last_read[value] = step
    live, most, inside = 0, 0, set(group)
    for step, node in enumerate(group):
        live += sum(int(graph.value_bytes[value]) for value in graph.values_of[node] if not leaves[value])
        most = max(most, live + int(graph.workspace_bytes[node]))
        for value in {*graph.values_of[node], *graph.values_read[node]}:
            if last_read[value] == step and not leaves[value] and int(graph.producer[value]) in inside:
                live -= int(graph.value_bytes[value])
    return most
