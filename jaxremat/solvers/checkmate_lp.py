"""Checkmate by linear programming: the relaxation, rounded in two phases.

Jain et al., "Checkmate: Breaking the Memory Wall with Optimal Tensor Rematerialization", MLSys 2020, section 5.

The relaxation is solved for (1 - margin) of the budget and what is kept, S, is rounded; then the runs R that these
values imply are derived, which are optimal for the rounded S. Polynomial: one linear program of O(N (N + V + R))
variables per margin, O(N R) for each rounding. No guarantee; every rounding is replayed, and the cheapest one that fits
is returned.

Deviations. The program is the tighter one of `checkmate_model`. As in the authors' code, thresholds 0.1 to 0.9 and
random roundings are tried beside 0.5; several margins are tried, not only 0.1; runs that nobody reads are removed.
Where no rounding fits, or the program is too large or too slow, Chen's planner answers. `lower_bound` is the optimum
of the relaxation without margin, where that has been solved.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from jaxremat.graph.graph import Chain, Graph
from jaxremat.graph.replay import replay
from jaxremat.solvers.base import Proposal, require_graph
from jaxremat.solvers.checkmate import order_that_fits, planned_schedule, schedule_rank
from jaxremat.solvers.checkmate_model import CheckmateModel, build_model, memory_entries
from jaxremat.solvers.dead_runs import without_dead_runs
from jaxremat.solvers.deadline import Deadline
from jaxremat.solvers.highs import minimize

_THRESHOLDS = (0.5, 0.4, 0.6, 0.3, 0.7, 0.2, 0.8, 0.1, 0.9)  # the authors' .1 to .9, from the middle outwards


@dataclasses.dataclass(frozen=True)
class CheckmateLP:
    """The relaxation with two-phase rounding.

    Attributes:
      margins: fractions of the budget that are left free in the relaxation, one linear program each.
      draws: random roundings per margin.
      default_seconds: time limit where `propose` is given none.
      most_entries: programs with more entries are not tried.
    """

    name = "checkmate-lp"
    margins: tuple[float, ...] = (0.0, 0.1, 0.05, 0.2)
    draws: int = 100
    default_seconds: float = 200.0
    most_entries: int = 30_000_000

    def propose(
        self, problem: Graph | Chain, budget_bytes: int, *, seed: int = 0, time_limit: float | None = None
    ) -> Proposal:
        """The cheapest rounding that fits in the budget, else what the planner finds."""
        graph = require_graph(problem, self.name)
        deadline = Deadline(self.default_seconds if time_limit is None else time_limit)
        if unchanged := order_that_fits(graph, budget_bytes):
            return unchanged
        random, lower_bound, schedules = np.random.default_rng(seed), None, []
        if memory_entries(graph, budget_bytes) <= self.most_entries:
            for margin in self.margins:
                model = build_model(graph, _shrunk(graph, budget_bytes, margin))
                outcome = minimize(model, integral=False, seconds=deadline.left_seconds)
                if outcome.solved and outcome.x is not None:
                    schedules += list(_roundings(graph, model, outcome.x, self.draws, random))
                if margin == 0 and outcome.solved and outcome.bound is not None:
                    lower_bound = outcome.bound * model.cost_unit
        best = min(schedules, key=lambda s: schedule_rank(graph, s, budget_bytes), default=None)
        if best is None or replay(graph, best).peak_bytes > budget_bytes:
            planned = planned_schedule(graph, budget_bytes, deadline)
            best = min((planned, *schedules), key=lambda s: schedule_rank(graph, s, budget_bytes))
        return Proposal(schedule=best, lower_bound=lower_bound)


def _shrunk(graph: Graph, budget_bytes: int, margin: float) -> int:
    """The budget with a margin taken off what is not resident."""
    return budget_bytes - int(margin * max(budget_bytes - graph.resident_bytes, 0))


def _roundings(
    graph: Graph, model: CheckmateModel, x: np.ndarray, draws: int, random: np.random.Generator
) -> Iterator[np.ndarray]:
    """Schedules of all the roundings of a relaxed point, without repeats."""
    keeps, seen = model.keeps(x), set()
    for draw in range(len(_THRESHOLDS) + draws):
        threshold = _THRESHOLDS[draw] if draw < len(_THRESHOLDS) else random.random(keeps.shape)
        schedule = model.schedule(implied_runs(model, keeps > threshold))
        if schedule.tobytes() not in seen:
            seen.add(schedule.tobytes())
            yield without_dead_runs(graph, schedule)


def implied_runs(model: CheckmateModel, kept: np.ndarray) -> np.ndarray:
    """Phase two: the fewest runs with which the kept values are there to be kept, and every input to be read.

    Args:
      model: the model.
      kept: [N + 1, V] Boolean, values carried into each stage.

    Returns:
      [N, N] Boolean runs: stage, node.
    """
    graph = model.graph
    runs = np.eye(graph.num_nodes, dtype=bool)
    for value, maker in enumerate(graph.producer.tolist()):
        runs[:, maker] |= kept[1:, value] & ~kept[:-1, value]
    for node in range(graph.num_nodes - 1, -1, -1):
        for value in graph.values_read[node]:
            runs[:, graph.producer[value]] |= runs[:, node] & ~kept[:-1, value]
    return runs
