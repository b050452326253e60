"""Schedules of a whole step: each mountain of memory is cut and searched by itself, and what is found is a program
again, whose new mountains can be cut in turn.

That covers one gradient, several one after another, gradients of gradients, and steps without any.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import numpy as np

from jaxremat.graph.graph import Graph
from jaxremat.graph.replay import replay
from jaxremat.solvers.mincut.search import Candidate, Search
from jaxremat.step.mountains import Section, best_cut, mountains, section

_MOST_ROUNDS = 6


@dataclasses.dataclass(frozen=True, eq=False)
class Schedule:
    """How a flat program runs.

    Attributes:
      steps: [T] nodes in execution order; repeats are recomputations.
      barriers: steps at which a stretch opens that receives all it reads through a barrier.
      peak_bytes, cost: replayed.
    """

    steps: np.ndarray
    barriers: tuple[int, ...]
    peak_bytes: int
    cost: float


class StepSearch:
    """Schedules of one flat program for any budget; what does not depend on the budget is done once.

    Args:
      graph: the program, in an order that runs.
      run_seconds: [N] what running each node again is taken to cost; infinite where it must not.
    """

    def __init__(self, graph: Graph, run_seconds: np.ndarray):
        self.graph = graph
        self._run_seconds = run_seconds

    @functools.cached_property
    def plain(self) -> Schedule:
        """The program as it stands."""
        return judged(self.graph, np.arange(self.graph.num_nodes, dtype=np.int32), ())

    def fit(self, budget_bytes: int) -> Schedule:
        """The cheapest schedule found whose replayed peak is within the budget, or the one with the smallest peak."""
        return self._scheduled(budget_bytes, lambda search: search.fit(budget_bytes))

    @functools.cached_property
    def smallest(self) -> Schedule:
        """The schedule with the smallest replayed peak."""
        return self._scheduled(0, lambda search: search.smallest)

    def smallest_few(self) -> list[Schedule]:
        """Schedules of small replayed peak: what to try where the prediction finds the rest too large."""
        each = [search.smallest_of_each_shape() for _, search in self._first_round]
        most = max(map(len, each), default=0)
        ways = [
            self._in_one_round(self.plain, [(part, found[min(i, len(found) - 1)]) for (part, _), found in parts])
            for i in range(most)
            for parts in [list(zip(self._first_round, each, strict=True))]
        ]
        return sorted([self.smallest, *ways], key=_by_peak)

    def _scheduled(self, budget_bytes: int, choose: Callable[[Search], Candidate]) -> Schedule:
        """Rounds of cuts, each at what the one before left too high; from the second on, at the highest alone."""
        best = schedule = self.plain
        for number in range(_MOST_ROUNDS):
            if best.peak_bytes <= budget_bytes:
                break
            searches = self._searches(schedule, best.peak_bytes) if number else self._first_round
            chosen = [(part, choose(search)) for part, search in searches if search.plain.peak_bytes > budget_bytes]
            schedule = self._in_one_round(schedule, chosen)
            if schedule.peak_bytes >= best.peak_bytes:
                break
            best = schedule
        return best

    @functools.cached_property
    def _first_round(self) -> list[tuple[Section, Search]]:
        return self._searches(self.plain, 0)

    def _searches(self, schedule: Schedule, least_bytes: int) -> list[tuple[Section, Search]]:
        """Mountains of at least a height of the program that a schedule is, each cut where that gains the most."""
        graph, run_seconds = unrolled(self.graph, schedule.steps), self._run_seconds[schedule.steps]
        live = replay(graph, np.arange(graph.num_nodes)).live_bytes
        found = []
        for first, end in mountains(live - graph.resident_bytes):
            if live[first:end].max() < least_bytes:
                continue
            part, cut = _cut(graph, run_seconds, live, first, end)
            found.append((part, Search(cut, np.concatenate([[np.inf], run_seconds[first:end]]))))
        return found

    def _in_one_round(self, schedule: Schedule, chosen: list[tuple[Section, Candidate]]) -> Schedule:
        """A schedule with some of its sections run as chosen; its barriers stay where their steps run first."""
        order = np.arange(schedule.steps.size)
        pieces: list[np.ndarray] = []
        opened: list[int] = []
        done = length = 0
        for part, candidate in chosen:
            inside = part.nodes(candidate.program.steps)
            pieces += [order[done : part.first], inside]
            length += part.first - done
            if inside.size > part.end - part.first:
                opened += [length + t - 1 for t in (candidate.program.backward_start, *candidate.program.barriers)]
            length, done = length + inside.size, part.end
        steps = np.concatenate([*pieces, order[done:]])
        moved = [int(np.flatnonzero(steps == barrier)[0]) for barrier in schedule.barriers]
        barriers = tuple(sorted({t for t in (*opened, *moved) if t < steps.size}))
        return judged(self.graph, schedule.steps[steps], barriers)


def turn_of(graph: Graph, run_seconds: np.ndarray) -> int:
    """The node at which the highest mountain of a program is cut."""
    live = replay(graph, np.arange(graph.num_nodes)).live_bytes - graph.resident_bytes
    first, end = max(mountains(live), key=lambda bounds: live[bounds[0] : bounds[1]].max())
    part, cut = _cut(graph, run_seconds, live, first, end)
    return part.first + int(cut.backward.argmax()) - 1 if cut.backward.any() else part.end


def _cut(graph: Graph, run_seconds: np.ndarray, live: np.ndarray, first: int, end: int) -> tuple[Section, Graph]:
    part = section(graph, first, end)
    seconds = np.concatenate([[np.inf], run_seconds[first:end]])
    return part, best_cut(part.graph, seconds, np.concatenate([[0], live[first:end]]))


def unrolled(graph: Graph, steps: np.ndarray) -> Graph:
    """The graph of a schedule: node t is step t, and what a node makes again is a value of its own."""
    latest = np.full(graph.num_values, -1, np.int64)
    source: list[int] = []
    producer: list[int] = []
    reads: list[tuple[int, int]] = []
    for step, node in enumerate(steps.tolist()):
        reads += [(int(latest[value]), step) for value in graph.values_read[node]]
        for value in graph.values_of[node]:
            latest[value] = len(source)
            source.append(value)
            producer.append(step)
    is_output = np.zeros(len(source), bool)
    is_output[latest[graph.is_output]] = True
    return Graph(
        costs=graph.costs[steps],
        workspace_bytes=graph.workspace_bytes[steps],
        value_bytes=graph.value_bytes[np.asarray(source, np.int64)],
        producer=np.asarray(producer, np.int32),
        reads=np.asarray(sorted(reads, key=lambda read: (read[1], read[0])), np.int32).reshape(-1, 2),
        is_output=is_output,
        resident_bytes=graph.resident_bytes,
        pinned=graph.pinned[steps],
    )


def judged(graph: Graph, steps: np.ndarray, barriers: tuple[int, ...]) -> Schedule:
    """A schedule with its replayed numbers."""
    timeline = replay(graph, steps)
    return Schedule(timeline.schedule, barriers, timeline.peak_bytes, timeline.cost)


def _by_peak(schedule: Schedule) -> tuple[int, float]:
    return schedule.peak_bytes, schedule.cost
