"""Checkmate: optimal rematerialization by mixed-integer programming.

Jain et al., "Checkmate: Breaking the Memory Wall with Optimal Tensor Rematerialization", MLSys 2020.

Optimal over *frontier-advancing* schedules: nodes run for the first time in the given order; between two first
runs (a stage) each earlier node may run once more, in topological order. Costs are per node, memory is that of the
exact replay, the budget is inclusive. NP-hard; O(N (N + V + R)) variables, solved by HiGHS through scipy.

Deviations. The published linearisation of FREE is replaced by a tighter one (see `checkmate_model`). Each value of a
node is kept or dropped by itself. A plan of Chen's planner bounds the cost from above, and nodes that cost more than
all that it recomputes are known to run once. Graphs of up to `exhaustive_nodes` nodes are solved by shortest paths
over live sets, which also proves that no repetition, however often and in whatever order, does better.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxremat.graph.graph import Chain, Graph
from jaxremat.graph.replay import replay
from jaxremat.solvers.base import Proposal, require_graph
from jaxremat.solvers.checkmate_model import CheckmateModel, build_model, memory_entries, peak_model
from jaxremat.solvers.chen import Chen, ChenRecursive
from jaxremat.solvers.deadline import Deadline
from jaxremat.solvers.exhaustive import cheapest_schedule, smallest_schedule
from jaxremat.solvers.highs import HighsResult, minimize

_HEURISTIC_STEPS = 200_000  # only a first bound
_SHARE_OF_PLANNER = 0.2  # of the time that is left, for each of two first bounds: most of it is for the program
_SHARE_OF_PROGRAM = 0.8  # of the time that is left, for the program itself; the rest is for the smallest peak
_MOST_OVERRUNS = 20  # rounded schedules that are cut off one by one


@dataclasses.dataclass(frozen=True)
class Checkmate:
    """The exact program.

    Attributes:
      default_seconds: time limit where `propose` is given none.
      exhaustive_nodes: graphs with no more nodes, and values, are solved by exhaustion.
      most_entries: programs with more entries are not tried; the planner's answer is returned.
    """

    name = "checkmate"
    default_seconds: float = 400.0
    exhaustive_nodes: int = 12
    most_entries: int = 30_000_000

    def propose(
        self, problem: Graph | Chain, budget_bytes: int, *, seed: int = 0, time_limit: float | None = None
    ) -> Proposal:
        """The cheapest frontier-advancing schedule; where time runs out, the best found, with a lower bound."""
        graph = require_graph(problem, self.name)
        deadline = Deadline(self.default_seconds if time_limit is None else time_limit)
        if unchanged := order_that_fits(graph, budget_bytes):
            return unchanged
        if max(graph.num_nodes, graph.num_values) <= self.exhaustive_nodes:
            return _exhausted(graph, budget_bytes)
        planned = planned_schedule(graph, budget_bytes, deadline)
        recomputed = _recomputed_cost(graph, planned, budget_bytes)
        if memory_entries(graph, budget_bytes, recomputed) > self.most_entries:
            return Proposal(schedule=planned)
        model = build_model(graph, budget_bytes, recomputed)
        schedule, outcome = _cheapest(model, graph, budget_bytes, recomputed, deadline)
        if schedule is not None:
            cost = float(graph.costs[schedule].sum())
            bound = cost if outcome.solved else _lower_bound(model, outcome, cost)
            return Proposal(schedule=schedule, lower_bound=bound, optimal=outcome.solved)
        if np.isfinite(recomputed):
            return Proposal(schedule=planned)
        return Proposal(schedule=_smallest(model, graph, planned, deadline))


def order_that_fits(graph: Graph, budget_bytes: int) -> Proposal | None:
    """The given order, which nothing can beat, where it fits in the budget as it is."""
    plain = np.arange(graph.num_nodes, dtype=np.int32)
    if replay(graph, plain).peak_bytes > budget_bytes:
        return None
    return Proposal(schedule=plain, lower_bound=float(graph.costs.sum()), optimal=True)


def planned_schedule(graph: Graph, budget_bytes: int, deadline: Deadline) -> np.ndarray:
    """The better of the two forms of Chen's planner: the cheaper one within the budget, else the smaller one."""
    schedules = []
    for planner in (Chen(node_steps=_HEURISTIC_STEPS), ChenRecursive(node_steps=_HEURISTIC_STEPS)):
        share = _SHARE_OF_PLANNER * deadline.left_seconds
        schedules.append(np.asarray(planner.propose(graph, budget_bytes, time_limit=share).schedule))
    return min(schedules, key=lambda schedule: schedule_rank(graph, schedule, budget_bytes))


def schedule_rank(graph: Graph, schedule: np.ndarray, budget_bytes: int) -> tuple[int, float]:
    """Sorts schedules: smaller peaks first down to the budget, then cheaper ones."""
    timeline = replay(graph, schedule)
    return max(timeline.peak_bytes, budget_bytes), timeline.cost


def _exhausted(graph: Graph, budget_bytes: int) -> Proposal:
    schedule = cheapest_schedule(graph, budget_bytes)
    if schedule is None:
        return Proposal(schedule=smallest_schedule(graph))
    return Proposal(schedule=schedule, lower_bound=float(graph.costs[schedule].sum()), optimal=True)


def _recomputed_cost(graph: Graph, schedule: np.ndarray, budget_bytes: int) -> float:
    """What a schedule costs beyond one run of every node; infinite where it does not fit."""
    timeline = replay(graph, schedule)
    return timeline.cost - float(graph.costs.sum()) if timeline.peak_bytes <= budget_bytes else np.inf


def _cheapest(
    model: CheckmateModel, graph: Graph, budget_bytes: int, recomputed: float, deadline: Deadline
) -> tuple[np.ndarray | None, HighsResult]:
    """Solves the program; points that fit only by the tolerances of HiGHS are excluded one by one."""
    most = (float(graph.costs.sum()) + recomputed) / model.cost_unit
    excluded: list[np.ndarray] = []
    while True:
        seconds = _SHARE_OF_PROGRAM * deadline.left_seconds
        outcome = minimize(model, integral=True, seconds=seconds, most_objective=most, excluded=excluded)
        if outcome.x is None:
            return None, outcome
        runs = outcome.x[: model.columns.num_runs] > 0.5
        schedule = model.schedule(model.runs(runs))
        if replay(graph, schedule).peak_bytes <= budget_bytes:
            return schedule, outcome
        if len(excluded) == _MOST_OVERRUNS or deadline.passed():
            return None, outcome
        excluded.append(runs)


def _lower_bound(model: CheckmateModel, outcome: HighsResult, cost: float) -> float | None:
    return None if outcome.bound is None else min(outcome.bound * model.cost_unit, cost)


def _smallest(model: CheckmateModel, graph: Graph, planned: np.ndarray, deadline: Deadline) -> np.ndarray:
    """The smallest peak that the program or the planner reaches in what is left of the time."""
    free_model = peak_model(model)
    outcome = minimize(free_model, integral=True, seconds=deadline.left_seconds)
    if outcome.x is None:
        return planned
    schedule = model.schedule(model.runs(outcome.x[: model.columns.num_runs] > 0.5))
    return min((schedule, planned), key=lambda candidate: schedule_rank(graph, candidate, 0))
