"""Where the barriers of a schedule stand.

What runs again must be kept apart from its first run, and from running before its time: by a barrier that all that is
read passes through. One barrier where recomputation moves on to another part of the program, rather than one before
every run again, keeps fusions whole.
"""

from __future__ import annotations

import itertools

import numpy as np

from jaxremat.graph.graph import Graph
from jaxremat.graph.scheduled import ScheduledProgram, schedule_program
from jaxremat.solvers.mincut.layout import Layout
from jaxremat.solvers.mincut.structure import Structure

_PARTS = 64


def with_barriers(graph: Graph, layout: Layout) -> ScheduledProgram:
    """The record of a layout, with a barrier wherever recomputation moves on to another part of the program."""
    barriers = barriers_of(parts_of(graph), graph.backward, layout.steps, layout.start)
    return schedule_program(graph, layout.steps, backward_start=layout.start, barriers=barriers)


def parts_of(graph: Graph) -> np.ndarray:
    """[N] in which of many small parts of the program each node lies; ids of parts rise along it."""
    return np.searchsorted(Structure(graph).boundaries(_PARTS), np.arange(graph.num_nodes))


def barriers_of(part: np.ndarray, backward: np.ndarray, steps: np.ndarray, start: int) -> tuple[int, ...]:
    """Steps at which a stretch behind a barrier opens.

    Args:
      part: [N] the part of each node.
      backward: [N] bool.
      steps: [T] the schedule.
      start: the step at which its backward begins.
    """
    again = _is_late_or_again(backward, steps, start)
    opens = np.flatnonzero(again & ~np.roll(again, 1))
    ends = np.flatnonzero(~again & np.roll(again, 1)) if not again.all() else np.zeros(0, np.int64)
    barriers: list[int] = []
    current, ran = -1, set(steps[: opens[0]].tolist() if opens.size else ())
    for first, following in itertools.pairwise([*opens.tolist(), steps.size]):
        end = int(ends[ends > first][0]) if (ends > first).any() else steps.size
        stretch = steps[first:end]
        furthest = int(part[stretch].max())
        if furthest != current or not ran.isdisjoint(stretch.tolist()):
            barriers.append(first)
            current, ran = furthest, set()
        ran.update(steps[first:following].tolist())
    return tuple(barriers)


def _is_late_or_again(backward: np.ndarray, steps: np.ndarray, start: int) -> np.ndarray:
    """[T] bool: steps that repeat a node, and forward nodes that run in the backward."""
    again = np.ones(steps.size, bool)
    again[np.unique(steps, return_index=True)[1]] = False
    again[start:] |= ~backward[steps[start:]]
    return again
