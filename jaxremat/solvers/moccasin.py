"""Moccasin: retention intervals instead of stages (Bartan et al., ICML 2023).

Every node has up to C copies; copy i runs at its start and is kept until its end. For each edge, an active copy of the
reader starts inside an interval of the node it reads; at no event do the kept intervals exceed the budget; the costs
of the active copies are minimised. That is O(C n) integers, where Checkmate needs O(n^2) Booleans. Two phases: first
the smallest footprint above the budget, then the cost within it.

The first copies follow one topological order, as in Checkmate; the paper takes any. Which order it is decides what
can be reached without recomputation, so both backends begin with a search of phase 1 and 2 over the same intervals (C
copies per node, ends implied by the last reader) in which the order is free: annealing chains on device.

  - backend "search" stops there. A heuristic.
  - backend "cp-sat" (OR-tools, an optional extra) takes the order found for its staged event domain, the schedule
    found for its hint, and improves it exactly: optimal for that order and C when the status says so.

Deviations: interval lengths are not restricted to log-spaced values, event ids are those of the stages alone, and
phase 1 of the paper is left to the search, which finds feasible plans sooner than the constraint solver does.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from typing import ClassVar

import numpy as np

from jaxremat.base.errors import ArgumentError
from jaxremat.graph.graph import Chain, Graph
from jaxremat.solvers.annealing_chains import Evaluated, evaluated, least_cost
from jaxremat.solvers.base import Proposal
from jaxremat.solvers.deadline import Deadline
from jaxremat.solvers.fastsa import FastSA, proposal_of
from jaxremat.solvers.moccasin_model import improve_by_intervals

_BACKENDS = ("auto", "cp-sat", "search")


@dataclasses.dataclass(frozen=True)
class Moccasin:
    """Retention intervals, by constraint programming or by a search over them.

    Attributes:
      copies: C, how often a node may run.
      backend: "cp-sat", "search", or "auto": cp-sat where OR-tools is installed.
      effort: OR-tools' deterministic time for the exact part, roughly seconds; equal efforts give equal answers.
      most_nodes: with backend "auto", larger graphs are left to the search.
      search: the annealer of the search.
    """

    copies: int = 2
    backend: str = "auto"
    effort: float = 6.0
    most_nodes: int = 400
    search: FastSA = dataclasses.field(default_factory=FastSA)

    name: ClassVar[str] = "moccasin"

    def __post_init__(self) -> None:
        if self.backend not in _BACKENDS:
            raise ArgumentError(f"backend is {self.backend!r}; Moccasin's backends are {', '.join(_BACKENDS)}")
        if self.copies < 1 or self.effort <= 0:
            raise ArgumentError(f"{self}: copies and effort must be positive")
        if self.backend == "cp-sat" and not _has_ortools():
            raise ArgumentError(
                "backend 'cp-sat' needs OR-tools: pip install 'jaxremat[moccasin]', or backend='search'"
            )

    def propose(self, problem: Graph | Chain, budget_bytes: int, *, seed: int, time_limit: float | None) -> Proposal:
        if not isinstance(problem, Graph):
            raise ArgumentError("moccasin takes a Graph; for a Chain use solver='rotor' or 'auto'")
        deadline = Deadline(time_limit)
        best = self._searched(problem, budget_bytes, seed, deadline)
        proposal = proposal_of(best, budget_bytes, float(problem.costs.sum()))
        exact = self.backend == "cp-sat" or (
            self.backend == "auto" and _has_ortools() and problem.num_nodes <= self.most_nodes
        )
        if not exact or proposal.optimal or best.peak_bytes > budget_bytes or deadline.passed(0.5):
            return proposal
        improved = improve_by_intervals(
            problem,
            best.schedule,
            budget_bytes,
            copies=self.copies,
            effort=self.effort,
            time_limit=deadline.remaining_seconds(),
            seed=seed,
        )
        exact_best = evaluated(problem, improved.schedule)
        best = min([best, exact_best], key=lambda f: f.key(budget_bytes))
        optimal = (improved.optimal and exact_best.cost <= best.cost) or best.cost <= least_cost(problem)
        return dataclasses.replace(proposal, schedule=best.schedule, optimal=optimal)

    def _searched(self, graph: Graph, budget_bytes: int, seed: int, deadline: Deadline) -> Evaluated:
        """The best schedule with C copies per node; its order is learnt with as many copies as the annealer likes."""
        listed = np.arange(graph.num_nodes)
        free = self.search.search(graph, [listed], budget_bytes, seed=seed, deadline=deadline)
        starts = [listed, np.asarray(list(dict.fromkeys(free.schedule.tolist())), np.int32)]
        if np.bincount(free.schedule).max() <= self.copies:
            if free.peak_bytes <= budget_bytes and free.cost <= least_cost(graph):
                return free
            starts.append(free.schedule)
        limited = dataclasses.replace(self.search, copies=self.copies)
        return limited.search(graph, starts, budget_bytes, seed=seed, deadline=deadline)


def _has_ortools() -> bool:
    return importlib.util.find_spec("ortools") is not None
