"""Where the barriers of a schedule stand.

What runs again must be kept apart from its first run, and from running before its time: by a barrier that all that is
read passes through. One barrier where recomputation moves on to another part of the program, rather than one before
every run again, keeps fusions whole.
"""

from __future__ import annotations

import itertools

import numpy as np

from jaxremat.base.remembering import while_alive
from jaxremat.graph.graph import Graph
from jaxremat.graph.scheduled import ScheduledProgram, first_runs, schedule_program
from jaxremat.solvers.mincut.layout import Layout
from jaxremat.solvers.mincut.structure import Structure

PARTS = 64  # benchmarks/constants.py; fewer parts, fewer barriers


def with_barriers(graph: Graph, layout: Layout, barriers: tuple[int, ...] | None = None) -> ScheduledProgram:
    """The record of a layout; by default with a barrier wherever recomputation moves on to another part."""
    if barriers is None:
        barriers = barriers_between(graph, layout.steps, layout.start, _usual_parts(graph))
    return schedule_program(graph, layout.steps, backward_start=layout.start, barriers=barriers)


@while_alive
def _usual_parts(graph: Graph) -> np.ndarray:
    return Structure(graph).parts(PARTS)


def barriers_between(graph: Graph, steps: np.ndarray, start: int, part: np.ndarray) -> tuple[int, ...]:
    """Steps at which a stretch behind a barrier opens; nothing runs twice between two of them.

    Args:
      graph: the graph.
      steps: [T] the schedule.
      start: the step at which its backward begins.
      part: [N] the part of the program that each node lies in.
    """
    again = _is_late_or_again(graph, steps, start)
    bounds = np.flatnonzero(again != np.roll(again, 1)) if not again.all() else np.zeros(0, np.int64)
    barriers: list[int] = []
    current, ran = -1, set[int]()
    for first, end in itertools.pairwise(sorted({0, *bounds.tolist(), steps.size})):
        stretch = steps[first:end].tolist()
        furthest = int(part[stretch].max())
        opens = again[first] and (furthest != current or not ran.isdisjoint(stretch))
        for step, node in enumerate(stretch, start=first):
            if opens or node in ran:
                barriers.append(step)
                current, ran, opens = furthest, set(), False
            ran.add(node)
    return tuple(barriers)


def before_what_ends(graph: Graph, steps: np.ndarray, barrier: int) -> int:
    """The place of a barrier moved up to before steps that lead nowhere, such as sums of a cotangent, and read only
    what is read behind the barrier as well: there they run with its other readers, as in `jax.checkpoint`.

    Args:
      graph: the graph.
      steps: [T] the schedule.
      barrier: the step before which a barrier stands.
    """
    read_behind = {value for node in steps[barrier:].tolist() for value in graph.values_read[node]}
    place, read = barrier, set[int]()
    for step in range(barrier - 1, -1, -1):
        node = int(steps[step])
        made = range(int(graph.value_start[node]), int(graph.value_start[node + 1]))
        if not graph.backward[node] or not read_behind.isdisjoint(made):
            break
        read = (read - {*made}).union(graph.values_read[node])
        place = step if read <= read_behind else place
    return place


def barriers_at_turns(graph: Graph, steps: np.ndarray, ends: np.ndarray) -> tuple[int, ...]:
    """Steps at which a schedule turns back to run something again, or from the forward to the backward, and those
    after nodes that end a stretch: a compiler that runs first what is ready first then follows it closely.

    Args:
      graph: the graph.
      steps: [T] the schedule.
      ends: [N] bool, the nodes after which a stretch ends in any case.
    """
    earlier, later = steps[:-1], steps[1:]
    turns = (later < earlier) | (graph.backward[later] & ~graph.backward[earlier]) | ends[earlier]
    return tuple((np.flatnonzero(turns) + 1).tolist())


def _is_late_or_again(graph: Graph, steps: np.ndarray, start: int) -> np.ndarray:
    """[T] bool: steps that repeat a node, and forward nodes that run in the backward; but for those that inputs alone
    give there, such as zeros, which lie in no part of the forward."""
    again = ~first_runs(steps)
    given = set[int]()
    for step in (start + np.flatnonzero(~graph.backward[steps[start:]] & ~again[start:])).tolist():
        node = int(steps[step])
        if given.issuperset(graph.producer[value] for value in graph.values_read[node]):
            given.add(node)
        else:
            again[step] = True
    return again
