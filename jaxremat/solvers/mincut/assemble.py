"""From a choice of kept values to a schedule: recompute just in time, in the order of the backward."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from jaxremat.graph.graph import Graph


def assemble(
    graph: Graph, kept: np.ndarray, group: np.ndarray | None = None, across: np.ndarray | None = None
) -> np.ndarray:
    """The schedule that keeps `kept` for the backward and recomputes what else it reads.

    With groups, memory is saved on two levels: the forward leaves only `across` (and what the last group keeps); when
    the backward reaches a group, the group's forward runs again and leaves what it keeps.

    Args:
      graph: a joint graph (`graph.backward` says which nodes depend on a cotangent).
      kept: [V] bool, forward values that are kept.
      group: [N] int, the group of each forward node, non-decreasing; None for one group.
      across: [V] bool, forward values that are kept from the forward on even where their group runs again.

    Returns:
      [T] int32: forward nodes that an output or a value left by the forward needs, in order; then the backward nodes
      in order, each preceded by the forward nodes that it still needs.
    """
    return assemble_parts(graph, kept, group, across)[0]


def assemble_parts(
    graph: Graph, kept: np.ndarray, group: np.ndarray | None = None, across: np.ndarray | None = None
) -> tuple[np.ndarray, int]:
    """As `assemble`: (the schedule, the step at which its backward begins)."""
    group = np.zeros(graph.num_nodes, np.int64) if group is None else group
    return assemble_nested(graph, [Level(kept, group)], kept if across is None else across)


@dataclasses.dataclass(frozen=True, eq=False)
class Level:
    """Groups that run again as a whole.

    Attributes:
      kept: [V] bool, forward values that a group leaves when it runs again.
      group: [N] int, the group of each forward node, non-decreasing.
    """

    kept: np.ndarray
    group: np.ndarray

    @functools.cached_property
    def last(self) -> int:
        """The group that never runs again: the forward leaves what it keeps."""
        return int(self.group.max(initial=0))


def assemble_nested(graph: Graph, levels: Sequence[Level], across: np.ndarray) -> tuple[np.ndarray, int]:
    """As `assemble_parts`, on any number of levels: the outermost first, each group inside of one of the level before.
    What pinned nodes make is left in any case: they run once.

    Args:
      graph: a joint graph.
      levels: at least one.
      across: [V] bool, forward values that are kept from the forward on.
    """
    left = (across | graph.pinned[graph.producer]) & ~graph.backward[graph.producer]
    for level in levels:
        left = left | (level.kept & (level.group[graph.producer] == level.last))
    forward = forward_part(graph, left)
    if not any(level.last for level in levels):
        return np.concatenate([forward, _just_in_time(graph, left)]).astype(np.int32), len(forward)
    return _InGroups(graph, levels, left, forward).run(), len(forward)


def _just_in_time(graph: Graph, left: np.ndarray) -> np.ndarray:
    """The backward nodes in order, each preceded by the forward nodes that it still needs."""
    moment = _first_needed(graph, left)
    again, late = np.flatnonzero(moment < graph.num_nodes), np.flatnonzero(graph.backward)
    nodes, moments = np.concatenate([again, late]), np.concatenate([moment[again], late])
    return nodes[np.lexsort((nodes, moments))]


def _first_needed(graph: Graph, left: np.ndarray) -> np.ndarray:
    """[N] the first backward node that needs each forward node to run again, directly or by way of others that do;
    the number of nodes where none does."""
    missing = ~left & ~graph.backward[graph.producer]
    moments = np.full(graph.num_nodes, graph.num_nodes)
    np.minimum.at(moments, graph.producer[missing], graph.first_backward_read[missing])
    value, reader = graph.reads[missing[graph.reads[:, 0]] & ~graph.backward[graph.reads[:, 1]]].T
    found = moments.tolist()
    for source, late in zip(graph.producer[value][::-1].tolist(), reader[::-1].tolist()):
        if found[late] < found[source]:
            found[source] = found[late]
    return np.asarray(found)


class _InGroups:
    """The same with groups, of which all but the last are restored when the backward reaches them."""

    def __init__(self, graph: Graph, levels: Sequence[Level], left: np.ndarray, forward: Sequence[int]) -> None:
        self.graph = graph
        self.levels = [_Restoring(graph, level) for level in levels if level.last]
        self.left = left
        self.available = (left | graph.backward[graph.producer]).tolist()
        self.steps = list(forward)
        self.producer = graph.producer.tolist()

    def run(self) -> np.ndarray:
        nodes = np.flatnonzero(self.graph.backward)
        late, done = nodes.tolist(), 0
        for place in np.flatnonzero(self._may_miss[nodes]).tolist():
            self.steps.extend(late[done:place])
            done = place
            self._provide([late[place]])
        return np.asarray([*self.steps, *late[done:]], np.int32)

    @functools.cached_property
    def _may_miss(self) -> np.ndarray:
        """[N] bool: nodes that read forward values that the forward does not leave."""
        value, node = self.graph.reads.T
        missing = ~self.left & ~self.graph.backward[self.graph.producer]
        may_miss = np.zeros(self.graph.num_nodes, bool)
        may_miss[node[missing[value]]] = True
        return may_miss

    def _provide(self, readers: list[int]) -> None:
        """Runs what `readers` need and is not available, restoring groups first, the outermost before others."""
        for level in self.levels:
            for needed in sorted(self._groups_missing(level, readers), reverse=True):
                self._restore(level, needed)
        missing, available, values_of = self._missing(readers), self.available, self.graph.values_of
        self.steps.extend(missing)
        for node in missing:
            for value in values_of[node]:
                available[value] = True

    def _restore(self, level: _Restoring, group: int) -> None:
        """Runs a group's forward again; only what it keeps stays."""
        level.restored.add(group)
        values = level.kept_by(group)
        producers = sorted({self.producer[v] for v in values if not self.available[v]})
        self.steps.extend(self._missing(producers, include=producers))
        for value in values:
            self.available[value] = True

    def _groups_missing(self, level: _Restoring, readers: list[int]) -> set[int]:
        groups = {
            level.value_group[value]
            for node in readers
            for value in self.graph.values_read[node]
            if not self.available[value]
        }
        return groups - level.restored

    def _missing(self, readers: list[int], include: Sequence[int] = ()) -> list[int]:
        """Forward nodes to run, in order, so that the readers can (and those to include)."""
        missing: set[int] = set(include)
        waiting, values_read = list(readers), self.graph.values_read
        available, producer = self.available, self.producer
        while waiting:
            for value in values_read[waiting.pop()]:
                if not available[value] and producer[value] not in missing:
                    missing.add(producer[value])
                    waiting.append(producer[value])
        return sorted(missing)


class _Restoring:
    """A level, and which of its groups have run again."""

    def __init__(self, graph: Graph, level: Level) -> None:
        self._kept, self._group_of = level.kept, level.group[graph.producer]
        self.value_group: list[int] = self._group_of.tolist()
        self.restored = {level.last}

    def kept_by(self, group: int) -> list[int]:
        """The values that a group leaves."""
        return np.flatnonzero(self._kept & (self._group_of == group)).tolist()


def forward_part(graph: Graph, left: np.ndarray) -> list[int]:
    """Forward nodes that must run there: for outputs, what is `left` and effects, or since nobody reads them."""
    wanted = (graph.is_output | left) & ~graph.backward[graph.producer]
    must_run = (graph.pinned | graph.is_dead_end) & ~graph.backward
    must_run[graph.producer[wanted]] = True
    readers, run, nodes_read = graph.forward_reads.tolist(), ~graph.backward, graph.nodes_read
    idle = np.flatnonzero(run & ~must_run & (graph.forward_reads == 0)).tolist()
    while idle:
        node = idle.pop()
        run[node] = False
        for source in nodes_read[node]:
            readers[source] -= 1
            if not readers[source] and not must_run[source]:
                idle.append(source)
    return np.flatnonzero(run).tolist()
