"""The default: the optimal dynamic program for chains, an annealing portfolio for graphs.

A chain goes to Rotor. A graph is annealed from several schedules at once: the order in which it is listed and what
Chen's planner makes of the budget. Chains of all temperatures start from each, and stage 2 of FastSA goes on from
the best until it stops gaining. Because the plan of every other cheap solver is among the starts, the answer is never
worse than theirs.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from jaxremat.graph import Chain, Graph
from jaxremat.solvers.base import Proposal
from jaxremat.solvers.chen import Chen
from jaxremat.solvers.deadline import Deadline
from jaxremat.solvers.fastsa import FastSA, proposal_of
from jaxremat.solvers.population import found
from jaxremat.solvers.rotor import Rotor

_CHEN_NODE_STEPS = 300_000


@dataclasses.dataclass(frozen=True)
class Auto:
    """Picks the solver by the problem; no parameters that a user would have to know.

    Attributes:
      annealing: the annealer, with more and hotter chains than FastSA's own default.
    """

    annealing: FastSA = dataclasses.field(
        default_factory=lambda: FastSA(
            temperatures=(1e-3, 3e-3, 1e-2, 1e-2, 2e-2, 3e-2), moves=400_000, reheats=6, reheat_moves=250_000
        )
    )

    name: ClassVar[str] = "auto"

    def propose(self, problem: Graph | Chain, budget_bytes: int, *, seed: int, time_limit: float | None) -> Proposal:
        if isinstance(problem, Chain):
            return Rotor().propose(problem, budget_bytes, seed=seed, time_limit=time_limit)
        deadline = Deadline(time_limit)
        starts = [np.arange(problem.num_nodes)]
        chen = Chen(node_steps=_CHEN_NODE_STEPS).propose(problem, budget_bytes, seed=seed, time_limit=time_limit)
        if (
            chen.schedule is not None
            and found(problem, chen.schedule).peak_bytes < found(problem, starts[0]).peak_bytes
        ):
            starts.append(chen.schedule)
        best = self.annealing.search(problem, starts, budget_bytes, seed=seed, deadline=deadline)
        return proposal_of(problem, best, budget_bytes)
