"""Moccasin's constraint program over retention intervals, for OR-tools' CP-SAT (Bartan et al., ICML 2023).

Events: stage j ends with the first run of the j-th node of a topological order; before that, nodes earlier in the
order may run again, in their order. A copy of node k in stage j has the event j (j + 1) / 2 + k, so that no two nodes
ever share an event and the sequence of events is an executable schedule.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from jaxremat.base.errors import GraphError
from jaxremat.graph.graph import Graph
from jaxremat.graph.replay import replay


@dataclasses.dataclass(frozen=True, eq=False)
class Improved:
    """What CP-SAT found, and whether it proved that nothing in its event domain costs less."""

    schedule: np.ndarray
    optimal: bool


def improve_by_intervals(
    graph: Graph,
    schedule: np.ndarray,
    budget_bytes: int,
    *,
    copies: int,
    effort: float,
    time_limit: float | None,
    seed: int,
) -> Improved:
    """Looks for a cheaper schedule whose first runs keep the order of a given one.

    Args:
      graph: the graph.
      schedule: a valid schedule; it gives the order and the hint.
      budget_bytes: resident bytes included.
      copies: runs per node.
      effort: deterministic time of the solver.
      time_limit: seconds, or None.
      seed: the solver's.

    Returns:
      The schedule found; the given one where the solver finds none.
    """
    from ortools.sat.python import cp_model

    order = np.asarray(list(dict.fromkeys(np.asarray(schedule).tolist())))
    model = _IntervalModel(graph, order, budget_bytes, copies, cp_model.CpModel())
    staged = staged_events(schedule, order, copies)
    if staged is not None and _is_valid(graph, order, staged):
        model.hint(staged)
    solver = cp_model.CpSolver()
    solver.parameters.random_seed = seed % 2**31
    solver.parameters.num_workers = 8
    solver.parameters.interleave_search = True
    solver.parameters.max_deterministic_time = effort
    if time_limit is not None:
        solver.parameters.max_time_in_seconds = time_limit
    status = solver.solve(model.model)
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return Improved(np.asarray(schedule), False)
    return Improved(model.schedule(solver), status == cp_model.OPTIMAL)


def event_of(stage: int, position: int) -> int:
    """The event at which the node at `position` of the order runs in a stage."""
    return stage * (stage + 1) // 2 + position


def staged_events(schedule: np.ndarray, order: np.ndarray, copies: int) -> list[list[int]] | None:
    """Events of each position's runs, with recomputations of a stage put in order; None with too many copies.

    Runs after the last first run serve nobody but outputs that they produce again, and are dropped.
    """
    position = np.empty(order.size, np.int64)
    position[order] = np.arange(order.size)
    events: list[list[int]] = [[] for _ in order]
    stage = 0
    for node in np.asarray(schedule).tolist():
        at = int(position[node])
        if stage == order.size:
            break
        event = event_of(stage, at)
        if not events[at] or events[at][-1] != event:
            events[at].append(event)
        stage += at == stage
    return events if max(map(len, events)) <= copies else None


def schedule_of(events: list[list[int]], order: np.ndarray) -> np.ndarray:
    """The schedule that a choice of events stands for."""
    pairs = sorted((event, at) for at, own in enumerate(events) for event in own)
    return order[[at for _, at in pairs]].astype(np.int32)


def _is_valid(graph: Graph, order: np.ndarray, events: list[list[int]]) -> bool:
    try:
        replay(graph, schedule_of(events, order))
    except GraphError:
        return False
    return True


class _IntervalModel:
    """The constraint program of one graph, order and budget. Positions of the order stand for nodes."""

    def __init__(self, graph: Graph, order: np.ndarray, budget_bytes: int, copies: int, model: Any) -> None:
        self.graph, self.order, self.model = graph, order, model
        self.copies = [1 if graph.pinned[node] else min(copies, order.size - at) for at, node in enumerate(order)]
        self.position = np.empty(order.size, np.int64)
        self.position[order] = np.arange(order.size)
        self.end = event_of(order.size, 0)
        self.active = [[model.new_bool_var("") for _ in range(count)] for count in self.copies]
        self.start = [self._starts(at) for at in range(order.size)]
        self.last = [self._lasts(value) for value in range(graph.num_values)]
        self.serves: dict[tuple[int, int], list[list[Any]]] = {}
        for value, node in graph.reads.tolist():
            self._serve(value, int(self.position[node]))
        self._keep_outputs()
        self._keep_budget(budget_bytes - graph.resident_bytes)
        unit = max(float(graph.costs.sum()) / 2**40, 1e-300)
        model.minimize(
            sum(
                round(float(graph.costs[node]) / unit) * self.active[at][copy]
                for at, node in enumerate(order)
                for copy in range(1, self.copies[at])
            )
        )

    def _starts(self, at: int) -> list[Any]:
        """Events of the copies: the first closes its own stage, later ones lie in any later stage."""
        from ortools.sat.python import cp_model

        later = cp_model.Domain.from_values([event_of(stage, at) for stage in range(at + 1, self.order.size)])
        starts = [self.model.new_constant(event_of(at, at))]
        self.model.add(self.active[at][0] == 1)
        for copy in range(1, self.copies[at]):
            start = self.model.new_int_var_from_domain(later, "")
            self.model.add(start > starts[-1]).only_enforce_if(self.active[at][copy])
            self.model.add_implication(self.active[at][copy], self.active[at][copy - 1])
            starts.append(start)
        return starts

    def _lasts(self, value: int) -> list[Any]:
        """The event up to which each copy of a value is kept, until the next copy at most."""
        at = int(self.position[self.graph.producer[value]])
        lasts = []
        for copy in range(self.copies[at]):
            last = self.model.new_int_var(event_of(at, at), self.end, "")
            self.model.add(last >= self.start[at][copy])
            if copy + 1 < self.copies[at]:
                self.model.add(last <= self.start[at][copy + 1]).only_enforce_if(self.active[at][copy + 1])
            lasts.append(last)
        return lasts

    def _serve(self, value: int, reader: int) -> None:
        """Every active copy of the reader starts within the interval of one active copy of the value."""
        at = int(self.position[self.graph.producer[value]])
        rows = []
        for copy in range(self.copies[reader]):
            row = [self.model.new_bool_var("") for _ in range(self.copies[at])]
            start, here = self.start[reader][copy], self.active[reader][copy]
            self.model.add(sum(row) == here)
            for source, chosen in enumerate(row):
                self.model.add_implication(chosen, self.active[at][source])
                self.model.add(self.start[at][source] < start).only_enforce_if(chosen)
                self.model.add(start <= self.last[value][source]).only_enforce_if(chosen)
            rows.append(row)
        self.serves[value, reader] = rows

    def _keep_outputs(self) -> None:
        """The last active copy of an output is kept to the end."""
        for value in np.flatnonzero(self.graph.is_output).tolist():
            active = self.active[int(self.position[self.graph.producer[value]])]
            for copy, last in enumerate(self.last[value]):
                is_last = [active[copy], *(other.negated() for other in active[copy + 1 : copy + 2])]
                self.model.add(last == self.end).only_enforce_if(is_last)

    def _keep_budget(self, budget_bytes: int) -> None:
        intervals, demands = [], []
        for value, size in enumerate(self.graph.value_bytes.tolist()):
            at = int(self.position[self.graph.producer[value]])
            for copy, last in enumerate(self.last[value]):
                start, here = self.start[at][copy], self.active[at][copy]
                length = self.model.new_int_var(1, self.end + 1, "")
                intervals.append(self.model.new_optional_interval_var(start, length, last + 1, here, ""))
                demands.append(size)
        for at, node in enumerate(self.order):
            for copy in range(self.copies[at]):
                start, here = self.start[at][copy], self.active[at][copy]
                intervals.append(self.model.new_optional_interval_var(start, 1, start + 1, here, ""))
                demands.append(int(self.graph.workspace_bytes[node]))
        unit = int(np.gcd.reduce(np.asarray(demands, np.int64))) or 1
        kept = [(interval, demand // unit) for interval, demand in zip(intervals, demands) if demand]
        self.model.add_cumulative(
            [interval for interval, _ in kept], [demand for _, demand in kept], budget_bytes // unit
        )

    def hint(self, events: list[list[int]]) -> None:
        """Tells the solver a valid choice of events, with intervals that end at their last reader."""
        lasts: dict[tuple[int, int], int] = {}
        for (value, reader), rows in self.serves.items():
            own = events[int(self.position[self.graph.producer[value]])]
            for copy, row in enumerate(rows):
                used = -1
                if copy < len(events[reader]):
                    read = events[reader][copy]
                    used = max(index for index, event in enumerate(own) if event < read)
                    lasts[value, used] = max(lasts.get((value, used), 0), read)
                for source, chosen in enumerate(row):
                    self.model.add_hint(chosen, source == used)
        for at, own in enumerate(events):
            for copy in range(1, self.copies[at]):
                if copy < len(own):
                    self.model.add_hint(self.start[at][copy], own[copy])
            for copy in range(self.copies[at]):
                self.model.add_hint(self.active[at][copy], copy < len(own))
        for value, variables in enumerate(self.last):
            own = events[int(self.position[self.graph.producer[value]])]
            for copy, last in enumerate(variables[: len(own)]):
                to_end = self.graph.is_output[value] and copy + 1 == len(own)
                self.model.add_hint(last, self.end if to_end else lasts.get((value, copy), own[copy]))

    def schedule(self, solver: Any) -> np.ndarray:
        """The schedule of the solver's answer."""
        events = [
            [solver.value(start) for start, here in zip(self.start[at], self.active[at]) if solver.value(here)]
            for at in range(self.order.size)
        ]
        return schedule_of(events, self.order)
