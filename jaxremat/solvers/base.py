"""The contract that every solver keeps: problem in, solution out; the replay, never the solver, certifies it."""

from __future__ import annotations

import dataclasses
import enum
from typing import Any, Protocol, runtime_checkable

import numpy as np

from jaxremat.base.errors import ArgumentError
from jaxremat.base.shapes import Int32, Integer
from jaxremat.graph.graph import Chain, Graph


class Status(enum.Enum):
    """What is known of a solution."""

    OPTIMAL = "optimal"  # proven, within the schedules that the solver searches
    FEASIBLE = "feasible"  # fits in the budget


@dataclasses.dataclass(frozen=True, eq=False)
class Solution:
    """What a solver found, with numbers from the replay.

    Attributes:
      schedule: [T] int32 node ids in execution order; repeats are recomputations. For a chain, stage ids as in
        `operations`.
      peak_bytes: replayed peak, resident bytes included.
      cost: replayed cost, in the unit of the graph's costs.
      status: optimal or feasible.
      lower_bound: a cost below which no schedule in the solver's class can go; None unless proven.
      solve_seconds: wall time spent.
      solver: name of the solver.
      operations: for chains, pairs (kind, stage) with kind forward_all, forward_checkpoint, forward_none or backward.
    """

    schedule: Int32[np.ndarray, " steps"]
    peak_bytes: int
    cost: float
    status: Status
    lower_bound: float | None = None
    solve_seconds: float = 0.0
    solver: str = ""
    operations: tuple[tuple[str, int], ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class Proposal:
    """What a solver hands to `solve`: a schedule (or chain operations) and what it proved, not yet certified.

    Attributes:
      schedule: [T] node ids in execution order; None for a chain.
      operations: of a chain, pairs (kind, stage); empty for a graph.
      lower_bound: a cost that no schedule within the budget can beat; None where nothing was proven.
      optimal: whether the schedule is proven to be the cheapest.
    """

    schedule: Integer[np.ndarray, " steps"] | None = None
    operations: tuple[tuple[str, int], ...] = ()
    lower_bound: float | None = None
    optimal: bool = False


@runtime_checkable
class Solver(Protocol):
    """A frozen dataclass of parameters with one method.

    Where many budgets can share work, a solver is a `StatefulSolver`, and `propose` takes what `init` returned in place
    of the problem.

    `propose` returns the cheapest schedule it finds within `budget_bytes`, or, where it finds none, the one with the
    smallest peak it can reach; it never raises for want of memory. Equal seeds give equal proposals.
    `time_limit` is in seconds; None means the solver's own default.
    """

    @property
    def name(self) -> str: ...

    def propose(self, problem: Any, budget_bytes: int, *, seed: int, time_limit: float | None) -> Proposal: ...


@runtime_checkable
class StatefulSolver(Solver, Protocol):
    """A solver in two halves: `init` does once what does not depend on the budget."""

    def init(self, problem: Graph | Chain) -> Any: ...


def state_of(solver: Solver, problem: Graph | Chain) -> Any:
    """What `solver.propose` takes for a problem: the problem itself where the solver has no `init`."""
    return solver.init(problem) if isinstance(solver, StatefulSolver) else problem


def require_graph(problem: Graph | Chain, solver: str) -> Graph:
    """The problem itself, where it is a graph.

    Raises:
      ArgumentError: for a chain.
    """
    if not isinstance(problem, Graph):
        raise ArgumentError(f"solver {solver!r} takes a Graph, not a {type(problem).__name__}; chains go to 'rotor'")
    return problem


def require_chain(problem: Graph | Chain, solver: str) -> Chain:
    """The problem itself, where it is a chain.

    Raises:
      ArgumentError: for a graph.
    """
    if not isinstance(problem, Chain):
        raise ArgumentError(f"solver {solver!r} takes a Chain, not a {type(problem).__name__}; graphs go to 'auto'")
    return problem
