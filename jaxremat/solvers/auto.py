"""The default: the optimal dynamic program for chains, minimum cuts for programs, annealing beside them for the rest.

A chain goes to Rotor (2019). A graph goes to the search by minimum cuts, and where its nodes are marked as forward and
backward, that is the answer. Other graphs of moderate size are also annealed, by FastSA as they come; if recomputation
is left to save, longer and hotter chains start from what FastSA and the cuts found, from the order in which the graph
is listed and, where nothing fits yet, from Chen's plan for the budget, and stage 2 goes on from the best until it stops
gaining. What was found before is among the starts, so the result is never worse.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from jaxremat.graph.graph import Chain, Graph
from jaxremat.solvers.annealing_chains import Evaluated, evaluated
from jaxremat.solvers.base import Proposal, require_graph
from jaxremat.solvers.chen import Chen
from jaxremat.solvers.deadline import Deadline
from jaxremat.solvers.fastsa import FastSA, proposal_of
from jaxremat.solvers.mincut.solver import CutState, MinCut
from jaxremat.solvers.rotor import Rotor

_CHEN_NODE_STEPS = 300_000  # one start of several, not the best of Chen; benchmarks/constants.py


@dataclasses.dataclass(frozen=True)
class Auto:
    """Picks the solver by the problem; no parameters that a user would have to know.

    Attributes:
      first: the annealer that goes first.
      second: the annealer that goes on where the first found recomputation necessary.
    """

    first: FastSA = dataclasses.field(default_factory=lambda: FastSA(reheats=1))
    second: FastSA = dataclasses.field(
        default_factory=lambda: FastSA(
            temperatures=(1e-2, 2e-2, 3e-2),
            moves=400_000,
            reheats=10,
            patience=3,
            reheat_moves=250_000,
        )
    )

    name: ClassVar[str] = "auto"

    def init(self, problem: Graph | Chain) -> Chain | CutState:
        """The chain itself, or the search by cuts of a graph."""
        return problem if isinstance(problem, Chain) else MinCut().init(require_graph(problem, self.name))

    def propose(
        self, state: Chain | CutState, budget_bytes: int, *, seed: int = 0, time_limit: float | None = None
    ) -> Proposal:
        if isinstance(state, Chain):
            return Rotor().propose(state, budget_bytes, seed=seed, time_limit=time_limit)
        deadline = Deadline(time_limit)
        cut = MinCut().propose(state, budget_bytes)
        if cut.optimal or state.graph.backward.any() or state.graph.num_nodes > self.first.group_above:
            return cut
        return self._annealed(state.graph, cut, budget_bytes, seed, deadline)

    def _annealed(self, graph: Graph, cut: Proposal, budget_bytes: int, seed: int, deadline: Deadline) -> Proposal:
        listed = np.arange(graph.num_nodes)
        early = self.first.search(graph, [listed], budget_bytes, seed=seed, deadline=deadline)
        starts = [evaluated(graph, start) for start in (listed, early.schedule, cut.schedule) if start is not None]
        best = min(starts, key=lambda f: f.key(budget_bytes))
        assert cut.lower_bound is not None
        proposal = proposal_of(best, budget_bytes, cut.lower_bound)
        if proposal.optimal or deadline.passed():
            return proposal
        if best.peak_bytes > budget_bytes:
            starts += self._chen(graph, budget_bytes, seed, deadline)
        lower = [start.schedule for start in starts[2:] if start.peak_bytes < starts[0].peak_bytes]
        begin = [listed, early.schedule, *lower]
        best = self.second.search(graph, begin, budget_bytes, seed=seed, deadline=deadline)
        return proposal_of(best, budget_bytes, cut.lower_bound)

    def _chen(self, graph: Graph, budget_bytes: int, seed: int, deadline: Deadline) -> list[Evaluated]:
        """Chen's plan for the budget."""
        seconds = deadline.remaining_seconds()
        chen = Chen(node_steps=_CHEN_NODE_STEPS).propose(graph, budget_bytes, seed=seed, time_limit=seconds)
        return [] if chen.schedule is None else [evaluated(graph, chen.schedule)]
