"""The default: the optimal dynamic program for chains, an annealing portfolio for graphs.

A chain goes to Rotor. A graph is annealed by FastSA as it comes; if recomputation is left to save, more and hotter
chains start from what FastSA found, from the order in which the graph is listed and from Chen's plan for the budget,
and stage 2 goes on from the best until it stops gaining. FastSA's answer and Chen's plan are among the starts, so the
result is never worse than theirs for the same seed.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from jaxremat.graph.graph import Chain, Graph
from jaxremat.solvers.base import Proposal
from jaxremat.solvers.chen import Chen
from jaxremat.solvers.deadline import Deadline
from jaxremat.solvers.fastsa import FastSA, proposal_of
from jaxremat.solvers.population import found
from jaxremat.solvers.rotor import Rotor

_CHEN_NODE_STEPS = 300_000
_NODES_AT_GIVEN_MOVES = 300
_MOST_EFFORT = 2.0


@dataclasses.dataclass(frozen=True)
class Auto:
    """Picks the solver by the problem; no parameters that a user would have to know.

    Attributes:
      first: the annealer that goes first.
      second: the annealer that goes on where the first found recomputation necessary; graphs of more than 300 nodes
        get up to twice its moves.
    """

    first: FastSA = dataclasses.field(default_factory=FastSA)
    second: FastSA = dataclasses.field(
        default_factory=lambda: FastSA(
            temperatures=(1e-3, 3e-3, 1e-2, 1e-2, 2e-2, 3e-2),
            moves=400_000,
            reheats=10,
            patience=4,
            reheat_moves=250_000,
        )
    )

    name: ClassVar[str] = "auto"

    def propose(self, problem: Graph | Chain, budget_bytes: int, *, seed: int, time_limit: float | None) -> Proposal:
        if isinstance(problem, Chain):
            return Rotor().propose(problem, budget_bytes, seed=seed, time_limit=time_limit)
        deadline = Deadline(time_limit)
        listed = np.arange(problem.num_nodes)
        early = self.first.search(problem, [listed], budget_bytes, seed=seed, deadline=deadline)
        proposal = proposal_of(problem, early, budget_bytes)
        if proposal.optimal or deadline.passed():
            return proposal
        chen = Chen(node_steps=_CHEN_NODE_STEPS).propose(
            problem, budget_bytes, seed=seed, time_limit=deadline.remaining_seconds()
        )
        starts = [listed, early.schedule]
        if chen.schedule is not None and found(problem, chen.schedule).peak_bytes < found(problem, listed).peak_bytes:
            starts.append(chen.schedule)
        best = self._second_for(problem).search(problem, starts, budget_bytes, seed=seed, deadline=deadline)
        return proposal_of(problem, best, budget_bytes)

    def _second_for(self, graph: Graph) -> FastSA:
        effort = min(max(graph.num_nodes / _NODES_AT_GIVEN_MOVES, 1.0), _MOST_EFFORT)
        moves, reheat_moves = int(effort * self.second.moves), int(effort * self.second.reheat_moves)
        return dataclasses.replace(self.second, moves=moves, reheat_moves=reheat_moves)
