"""FastSA: simulated annealing over schedules with free reordering (Imanishi et al., NeurIPS 2023).

Moves add, remove or shift one run in a slotted schedule; the objective is max(budget, peak) * cost, accepted by
Metropolis at a temperature that falls geometrically; large graphs are annealed as groups of nodes first (stage 1) and
node by node afterwards (stage 2). A heuristic: no optimality is promised, except that a schedule which runs every
node once and fits is the cheapest there is.

Cost: one move takes O(degree * readers + sqrt(T)) for T slots, about a microsecond; memory is O(nodes + edges).

Deviations from the paper:
  - T is at least four slots per node, spread evenly again ten times per stage, where the paper has 2**20 and never
    moves them.
  - An added run is proposed shortly before a reader of its value; in the paper, anywhere.
  - Several chains start at 0.1 % (the paper's), 1 % and 3 % of the objective: with tens of times fewer moves than the
    paper's 20 million, hot chains are those that learn to reorder.
  - Where no chain meets the budget, the same walk looks for the smallest peak whatever it costs, starting without
    regard to the budget, so that the peak it reports can be asked for.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from jaxremat.errors import ArgumentError
from jaxremat.graph import Chain, Graph
from jaxremat.solvers.base import Proposal
from jaxremat.solvers.deadline import Deadline
from jaxremat.solvers.grouping import group_nodes
from jaxremat.solvers.population import Cooling, Found, Population, found, least_cost

_SQUEEZE_COST_WEIGHT = 0.02


@dataclasses.dataclass(frozen=True)
class FastSA:
    """Simulated annealing of the whole schedule.

    Attributes:
      moves: moves of each chain in stage 1.
      refining_moves: moves of each chain in stage 2, from the best schedule of stage 1.
      temperatures: first temperature of each chain, relative to the objective; one chain each.
      cooling: last temperature of a stage over its first; stage 2 starts where the coolest chain of stage 1 ends.
      group_above: graphs with more nodes than this are grouped in stage 1.
    """

    moves: int = 800_000
    refining_moves: int = 200_000
    temperatures: tuple[float, ...] = (1e-3, 1e-2, 1e-2, 3e-2)
    cooling: float = 1e-3
    group_above: int = 1024

    name: ClassVar[str] = "fastsa"

    def __post_init__(self):
        if self.moves < 1 or self.refining_moves < 1 or not self.temperatures or not 0 < self.cooling <= 1:
            raise ArgumentError(f"{self}: moves must be positive, one temperature or more, cooling within (0, 1]")

    def propose(self, problem: Graph | Chain, budget_bytes: int, *, seed: int, time_limit: float | None) -> Proposal:
        if not isinstance(problem, Graph):
            raise ArgumentError("fastsa takes a Graph; for a Chain use solver='rotor' or 'auto'")
        deadline = Deadline(time_limit)
        best = self.search(problem, [np.arange(problem.num_nodes)], budget_bytes, seed=seed, deadline=deadline)
        return proposal_of(problem, best, budget_bytes)

    def search(
        self, graph: Graph, starts: list[np.ndarray], budget_bytes: int, *, seed: int, deadline: Deadline
    ) -> Found:
        """The cheapest schedule found within a budget, else one whose peak does not depend on the budget.

        Args:
          graph: the graph.
          starts: valid schedules; chains take them in turn.
          budget_bytes: resident bytes included.
          seed: equal seeds give equal schedules unless the deadline passes.
          deadline: checked several times a second.
        """
        given = min((found(graph, start) for start in starts), key=lambda f: f.key(budget_bytes))
        population = Population(graph)
        if population.is_least(given, budget_bytes):
            return given
        best = given
        if budget_bytes >= working_set_bytes(graph):
            best = self._stages(population, starts, budget_bytes, seed, deadline)
        if best.peak_bytes > budget_bytes:
            best = self._squeezed(population, starts, budget_bytes, seed, deadline)
        return best

    def improve(self, graph: Graph, schedule: np.ndarray, budget_bytes: int, seed: int = 0, **limits) -> np.ndarray:
        """Polishes a schedule: never dearer, and within the budget if the given one is.

        Args:
          graph: the graph.
          schedule: a valid schedule.
          budget_bytes: resident bytes included.
          seed: equal seeds give equal schedules.
          **limits: `time_limit` in seconds.

        Returns:
          [T] int32, the better schedule.
        """
        deadline = Deadline(limits.get("time_limit"))
        population = Population(graph)
        coolings = self._coolings(self.cooling * 1e-1, self.refining_moves)
        starts = [schedule] * len(coolings)
        chains = population.anneal(starts, coolings, budget_bytes, seed=seed, deadline=deadline)
        return min(chains, key=lambda f: f.key(budget_bytes)).schedule

    def _stages(
        self, fine: Population, starts: list[np.ndarray], budget_bytes: int, seed: int, deadline: Deadline
    ) -> Found:
        """The two stages: grouped (or plain) and hot, then node by node and cool from the best."""
        coolings = self._coolings(1.0, self.moves)
        first = self._grouped(fine.graph, coolings, budget_bytes, seed, deadline)
        begin = [(first or starts)[chain % len(first or starts)] for chain in range(len(coolings))]
        chains = fine.anneal(begin, coolings, budget_bytes, seed=seed, deadline=deadline)
        best = min(chains, key=lambda f: f.key(budget_bytes))
        if deadline.passed() or fine.is_least(best, budget_bytes):
            return best
        coolings = self._coolings(self.cooling, self.refining_moves)
        starts = [best.schedule] * len(coolings)
        chains = fine.anneal(starts, coolings, budget_bytes, seed=seed + 1, deadline=deadline)
        return min([best, *chains], key=lambda f: f.key(budget_bytes))

    def _grouped(
        self, graph: Graph, coolings: list[Cooling], budget_bytes: int, seed: int, deadline: Deadline
    ) -> list[np.ndarray]:
        """Schedules of a large graph after annealing its groups; none for a small one."""
        if graph.num_nodes <= self.group_above:
            return []
        grouping = group_nodes(graph)
        listed = np.arange(grouping.graph.num_nodes)
        chains = Population(grouping.graph).anneal(
            [listed] * len(coolings), coolings, budget_bytes, seed=seed, deadline=deadline
        )
        return [grouping.expand(chain.schedule) for chain in chains]

    def _squeezed(
        self, population: Population, starts: list[np.ndarray], budget_bytes: int, seed: int, deadline: Deadline
    ) -> Found:
        """The smallest peak found; if that fits, the cheapest schedule found from there."""
        coolings = [
            dataclasses.replace(cooling, cost_weight=_SQUEEZE_COST_WEIGHT)
            for cooling in self._coolings(1.0, self.moves)
        ]
        begin = [starts[chain % len(starts)] for chain in range(len(coolings))]
        chains = population.anneal(begin, coolings, 1, seed=seed, deadline=deadline)
        smallest = min(chains, key=lambda f: (f.peak_bytes, f.cost))
        if smallest.peak_bytes > budget_bytes or deadline.passed():
            return smallest
        coolings = self._coolings(1.0, self.moves)
        starts = [smallest.schedule] * len(coolings)
        chains = population.anneal(starts, coolings, budget_bytes, seed=seed, deadline=deadline)
        return min([smallest, *chains], key=lambda f: f.key(budget_bytes))

    def _coolings(self, scale: float, moves: int) -> list[Cooling]:
        return [Cooling(scale * hot, scale * hot * self.cooling, moves) for hot in self.temperatures]


def working_set_bytes(graph: Graph) -> int:
    """A peak below which no schedule can go: the largest node with what it reads, makes and needs."""
    need = graph.node_bytes + graph.workspace_bytes
    np.add.at(need, graph.reads[:, 1], graph.value_bytes[graph.reads[:, 0]])
    outputs = int(graph.value_bytes[graph.is_output].sum())
    return graph.resident_bytes + max(int(need.max()), outputs)


def proposal_of(graph: Graph, best: Found, budget_bytes: int) -> Proposal:
    """What is known of a schedule: every node runs at least once, so no schedule costs less than their sum."""
    optimal = best.peak_bytes <= budget_bytes and best.cost <= least_cost(graph)
    return Proposal(best.schedule, lower_bound=float(graph.costs.sum()), optimal=optimal)
