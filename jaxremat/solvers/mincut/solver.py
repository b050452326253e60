"""Minimum cuts: what to keep and what to run again, at a price per kept byte; see `search`.

A heuristic for programs that first make values and then read them in another order, as gradients do. For a price and
a layout the choice of kept values is exact; prices and layouts are searched. A graph whose nodes are not marked as
forward and backward is taken in two parts, before and after its peak.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from jaxremat.graph.graph import Chain, Graph
from jaxremat.graph.replay import replay
from jaxremat.solvers.base import Proposal, require_graph
from jaxremat.solvers.mincut.search import Search
from jaxremat.solvers.population import least_cost


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
        return CutState(graph, Search(_in_two_parts(graph), graph.rerun_costs))

    def propose(
        self, state: CutState, budget_bytes: int, *, seed: int = 0, time_limit: float | None = None
    ) -> Proposal:
        """The cheapest candidate within the budget, or the one with the smallest peak; deterministic."""
        best = state.search.fit(budget_bytes)
        optimal = best.peak_bytes <= budget_bytes and best.cost <= least_cost(state.graph)
        return Proposal(best.program.steps, lower_bound=float(state.graph.costs.sum()), optimal=optimal)


def _in_two_parts(graph: Graph) -> Graph:
    """The graph with the nodes after its peak marked as backward, where nothing is marked."""
    if graph.backward.any():
        return graph
    order = np.arange(graph.num_nodes)
    return dataclasses.replace(graph, backward=order > replay(graph, order).peak_step)
