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
  - Several chains, the first at the paper's 0.1 % of the objective, the others hotter: with tens of times fewer moves
    than the paper's 20 million, hot chains are those that learn to reorder. Stage 2 repeats from the best schedule, at
    several temperatures at once, as long as that helps.
  - Where no chain meets the budget, the same walk looks for the smallest peak whatever it costs, without regard to
    the budget, so that the peak it reports can be asked for.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from jaxremat.base.errors import ArgumentError
from jaxremat.graph.graph import Chain, Graph
from jaxremat.solvers.annealing_chains import ROUNDING, AnnealingChains, Cooling, Evaluated, evaluated
from jaxremat.solvers.base import Proposal
from jaxremat.solvers.deadline import Deadline
from jaxremat.solvers.grouping import group_nodes

_SQUEEZE_COST_WEIGHT = 0.02  # benchmarks/constants.py
_TIGHT_COST_WEIGHT = 0.2  # benchmarks/constants.py
_NODES_AT_GIVEN_HEAT = 100  # where one node is 1 % of the cost


@dataclasses.dataclass(frozen=True)
class FastSA:
    """Simulated annealing of the whole schedule.

    Attributes:
      temperatures: first temperature of each chain of stage 1, relative to the objective; for graphs of less than a
        hundred nodes, where one node is more than 1 % of the cost, they rise in proportion.
      moves: moves of each chain in stage 1.
      reheats: how often stage 2 is repeated at most.
      patience: stage 2 ends after this many repetitions in a row that gain nothing.
      reheat_temperatures: first temperature of each chain of stage 2.
      reheat_moves: moves of each chain in one repetition of stage 2.
      cooling: last temperature of a chain over its first.
      group_above: graphs with more nodes than this are grouped in stage 1.
      copies: how often a schedule may run one node.
    """

    temperatures: tuple[float, ...] = (1e-3, 3e-3, 1e-2, 2e-2)
    moves: int = 300_000
    reheats: int = 3
    patience: int = 2
    reheat_temperatures: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2)
    reheat_moves: int = 150_000
    cooling: float = 1e-3
    group_above: int = 1024
    copies: int = 8

    name: ClassVar[str] = "fastsa"

    def __post_init__(self) -> None:
        if min(self.moves, self.reheat_moves) < 1 or not (self.temperatures and self.reheat_temperatures):
            raise ArgumentError(f"{self}: moves must be positive, and each stage needs a temperature")
        if not (0 < self.cooling <= 1 and min(*self.temperatures, *self.reheat_temperatures) > 0):
            raise ArgumentError(f"{self}: temperatures must be positive and cooling within (0, 1]")

    def propose(self, problem: Graph | Chain, budget_bytes: int, *, seed: int, time_limit: float | None) -> Proposal:
        if not isinstance(problem, Graph):
            raise ArgumentError("fastsa takes a Graph; for a Chain use solver='rotor' or 'auto'")
        deadline = Deadline(time_limit)
        best = self.search(problem, [np.arange(problem.num_nodes)], budget_bytes, seed=seed, deadline=deadline)
        return proposal_of(best, budget_bytes, float(problem.costs.sum()))

    def search(
        self, graph: Graph, starts: list[np.ndarray], budget_bytes: int, *, seed: int, deadline: Deadline
    ) -> Evaluated:
        """The cheapest schedule found within a budget, else one whose peak does not depend on the budget.

        Args:
          graph: the graph.
          starts: valid schedules; chains take them in turn.
          budget_bytes: resident bytes included.
          seed: equal seeds give equal schedules unless the deadline passes.
          deadline: checked several times a second.
        """
        given = min((evaluated(graph, start) for start in starts), key=lambda f: f.key(budget_bytes))
        annealing = AnnealingChains(graph, self.copies)
        if annealing.is_least(given, budget_bytes):
            return given
        best = given
        if budget_bytes >= working_set_bytes(graph):
            best = self._stages(annealing, starts, budget_bytes, seed, deadline)
        if best.peak_bytes > budget_bytes:
            best = self._squeezed(annealing, starts[0], given, budget_bytes, seed, deadline)
        return best

    def _stages(
        self, annealing: AnnealingChains, starts: list[np.ndarray], budget_bytes: int, seed: int, deadline: Deadline
    ) -> Evaluated:
        """Stage 1 on groups if there are many nodes, then on nodes; stage 2 from the best."""
        grouped = self._grouped(annealing.graph, budget_bytes, seed, deadline)
        begin = _in_turn(starts[1:] + grouped if grouped else starts, len(self.temperatures))
        chains = annealing.anneal(
            begin,
            self._coolings(annealing.graph, self.temperatures, self.moves, 1.0),
            budget_bytes,
            seed=seed,
            deadline=deadline,
        )
        best = min(chains, key=lambda f: f.key(budget_bytes))
        return self._reheated(annealing, best, budget_bytes, seed + 1, deadline)

    def _reheated(
        self, annealing: AnnealingChains, best: Evaluated, budget_bytes: int, seed: int, deadline: Deadline
    ) -> Evaluated:
        """Stage 2: chains at several temperatures from the best schedule, again and again."""
        idle = 0
        for repetition in range(self.reheats):
            if idle == self.patience or deadline.passed() or annealing.is_least(best, budget_bytes):
                break
            weight = 1.0 if best.peak_bytes <= budget_bytes else _TIGHT_COST_WEIGHT
            coolings = self._coolings(annealing.graph, self.reheat_temperatures, self.reheat_moves, weight)
            starts = [best.schedule] * len(coolings)
            again = seed * 1009 + repetition
            chains = annealing.anneal(starts, coolings, budget_bytes, seed=again, deadline=deadline)
            leader = min([best, *chains], key=lambda f: f.key(budget_bytes))
            idle = idle + 1 if leader.key(budget_bytes)[:2] == best.key(budget_bytes)[:2] else 0
            best = leader
        return best

    def _grouped(self, graph: Graph, budget_bytes: int, seed: int, deadline: Deadline) -> list[np.ndarray]:
        """Schedules of a large graph after annealing its groups; none for a small one."""
        if graph.num_nodes <= self.group_above:
            return []
        grouping = group_nodes(graph)
        starts = [np.arange(grouping.graph.num_nodes)] * len(self.temperatures)
        chains = AnnealingChains(grouping.graph, self.copies).anneal(
            starts,
            self._coolings(graph, self.temperatures, self.moves, 1.0),
            budget_bytes,
            seed=seed,
            deadline=deadline,
        )
        return [grouping.expand(chain.schedule) for chain in chains]

    def _squeezed(
        self,
        annealing: AnnealingChains,
        start: np.ndarray,
        given: Evaluated,
        budget_bytes: int,
        seed: int,
        deadline: Deadline,
    ) -> Evaluated:
        """The smallest peak found; if that fits, the cheapest schedule found from there."""
        begin = [start] * len(self.temperatures)
        coolings = self._coolings(annealing.graph, self.temperatures, self.moves, _SQUEEZE_COST_WEIGHT)
        chains = annealing.anneal(begin, coolings, 1, seed=seed, deadline=deadline)
        smallest = min([given, *chains], key=lambda f: (f.peak_bytes, f.cost))
        if smallest.peak_bytes > budget_bytes:
            return smallest
        return self._reheated(annealing, smallest, budget_bytes, seed + 2, deadline)

    def _coolings(self, graph: Graph, temperatures: tuple[float, ...], moves: int, cost_weight: float) -> list[Cooling]:
        heat = max(1.0, _NODES_AT_GIVEN_HEAT / graph.num_nodes)
        return [Cooling(heat * hot, heat * hot * self.cooling, moves, cost_weight) for hot in temperatures]


def _in_turn(starts: list[np.ndarray], count: int) -> list[np.ndarray]:
    return [starts[chain % len(starts)] for chain in range(count)]


def working_set_bytes(graph: Graph) -> int:
    """A peak below which no schedule can go: the largest node with what it reads, makes and needs."""
    need = graph.node_bytes + graph.workspace_bytes
    np.add.at(need, graph.reads[:, 1], graph.value_bytes[graph.reads[:, 0]])
    outputs = int(graph.value_bytes[graph.is_output].sum())
    return graph.resident_bytes + max(int(need.max()), outputs)


def proposal_of(best: Evaluated, budget_bytes: int, least: float) -> Proposal:
    """What is known of a schedule, where none costs less than `least`."""
    optimal = best.peak_bytes <= budget_bytes and best.cost <= (1 + ROUNDING) * least
    return Proposal(best.schedule, lower_bound=least, optimal=optimal)
