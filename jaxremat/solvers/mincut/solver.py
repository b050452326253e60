"""Minimum cuts: what to keep and what to run again, at a price per kept byte; see `search`.

A heuristic for programs that first make values and then read them in another order, as gradients do. For a price and
segments the choice of kept values is exact (Picard 1976); prices, segments and peaks are searched. Nodes run for the
first time in the order in which the graph lists them.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from jaxremat.graph.graph import Chain, Graph
from jaxremat.solvers.annealing_chains import ROUNDING
from jaxremat.solvers.base import Proposal, require_graph
from jaxremat.solvers.mincut.bound import lower_bound
from jaxremat.solvers.mincut.search import Search


@dataclasses.dataclass(frozen=True, eq=False)
class CutState:
    """A graph as given, and its search, which remembers what it has tried."""

    graph: Graph
    search: Search


@dataclasses.dataclass(frozen=True)
class MinCut:
    """The default search of programs; no parameters."""

    name: ClassVar[str] = "mincut"

    def init(self, problem: Graph | Chain) -> CutState:
        graph = require_graph(problem, self.name)
        return CutState(graph, Search(graph))

    def propose(
        self, state: CutState, budget_bytes: int, *, seed: int = 0, time_limit: float | None = None
    ) -> Proposal:
        """The cheapest candidate within the budget, or the one with the smallest peak; deterministic."""
        best = state.search.fit(budget_bytes)
        least = lower_bound(state.graph, budget_bytes)
        optimal = best.peak_bytes <= budget_bytes and best.cost <= (1 + ROUNDING) * least
        return Proposal(best.layout.steps, lower_bound=least, optimal=optimal)
