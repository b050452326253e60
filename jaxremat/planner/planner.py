"""Plans for one program on one device: loops and flat schedule together, for any budget."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from jaxremat.planner.problem import Problem, pose
from jaxremat.planner.search import Search
from jaxremat.trace.joint import Primal


@dataclasses.dataclass(frozen=True, eq=False)
class Outcome:
    """A schedule of a problem, with its replayed numbers.

    Attributes:
      problem: the program with its loops decided.
      schedule: [T] node ids of the problem's graph.
      peak_bytes, cost: from the replay.
    """

    problem: Problem
    schedule: np.ndarray
    peak_bytes: int
    cost: float


class Planner:
    """Outcomes for one program on one device.

    Args:
      primal: the program.
      device: what its costs and bytes are for.
    """

    def __init__(self, primal: Primal, device):
        self.primal = primal
        self.device = device
        self._fitted: dict[int, Outcome] = {}

    @functools.cached_property
    def problem(self) -> Problem:
        """The program with its loops left alone."""
        return pose(self.primal, self.device)

    @functools.cached_property
    def _search(self) -> Search:
        return Search(self.problem.graph)

    @functools.cached_property
    def plain(self) -> Outcome:
        return self._outcome(self.problem, self._search.plain)

    def fit(self, budget_bytes: int) -> Outcome:
        """The cheapest outcome whose replayed peak is within the budget, or the one with the smallest peak."""
        candidate = self._search.fit(budget_bytes)
        return self._outcome(self.problem, candidate)

    @functools.cached_property
    def smallest(self) -> Outcome:
        return self._outcome(self.problem, self._search.smallest)

    def _outcome(self, problem: Problem, candidate) -> Outcome:
        key = id(candidate)
        if key not in self._fitted:
            self._fitted[key] = Outcome(problem, candidate.schedule, candidate.peak_bytes, candidate.cost)
        return self._fitted[key]
