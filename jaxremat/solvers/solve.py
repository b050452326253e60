"""The one entrance to every solver: checks the question, asks the solver, replays the answer."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import numpy as np

from jaxremat.base.errors import ArgumentError, BudgetError, GraphError
from jaxremat.graph.graph import Chain, Graph
from jaxremat.graph.replay import Timeline, replay, replay_operations
from jaxremat.solvers.base import Proposal, Solution, Solver, Status, state_of
from jaxremat.solvers.deadline import Deadline
from jaxremat.solvers.registry import solver_named

_FLOOR_ATTEMPTS = 4  # a solver may answer its own peak with a lower one, which is asked for in turn
_NAMED_AT_PEAK = 5  # words of a message


def solve(
    problem: Graph | Chain,
    budget: int,
    solver: str | Solver | type[Solver] = "auto",
    seed: int = 0,
    time_limit: float | None = None,
) -> Solution:
    """Finds the cheapest schedule whose replayed peak stays within a budget.

    Args:
      problem: a graph, or a chain (for "auto" and "rotor").
      budget: bytes; bounds the replayed peak, resident bytes included.
      solver: "auto", another solver's name, or an instance of a class in `jaxremat.solvers`.
      seed: equal seeds give equal solutions, unless a time limit cuts the search short.
      time_limit: seconds the solver may take; None means the solver's own default.

    Returns:
      The solution, with peak and cost taken from the replay and never from the solver.

    Raises:
      BudgetError: where no schedule fits; its `min_peak_bytes` is a budget that the same call would meet.
      ArgumentError: for an unknown solver, a solver that does not take this problem, or a malformed argument.
    """
    budget_bytes = _checked_budget(budget)
    chosen = solver_named(solver)
    if not isinstance(problem, Graph | Chain):
        raise ArgumentError(
            f"solve takes a Graph or a Chain, not {type(problem).__name__}; jaxremat.trace makes a Graph of a function"
        )
    if time_limit is not None and not time_limit > 0:
        raise ArgumentError(f"time_limit is {time_limit}; give a positive number of seconds, or None")
    deadline = Deadline(time_limit)
    question = _Question(problem, chosen, state_of(chosen, problem), seed, deadline)
    solution = question.certified(budget_bytes)
    if solution.peak_bytes > budget_bytes:
        _refuse(problem, budget_bytes, question.reachable(solution))
    return solution


def _checked_budget(budget: Any) -> int:
    whole = isinstance(budget, int | np.integer) or (
        isinstance(budget, float) and budget.is_integer() and budget != 1.0
    )
    if not whole or isinstance(budget, bool):
        raise ArgumentError(
            f"budget is {budget!r}; give bytes as an integer (jaxremat.plan also takes '12GiB' and fractions)"
        )
    if budget <= 0:
        raise ArgumentError(f"budget is {budget} bytes; give a positive number of bytes")
    return int(budget)


@dataclasses.dataclass(frozen=True, eq=False)
class _Question:
    """A problem put to a solver, for any budget."""

    problem: Graph | Chain
    solver: Solver
    state: Any
    seed: int
    deadline: Deadline

    def certified(self, budget_bytes: int) -> Solution:
        """Asks the solver and replays what it proposes; a bound that the replay refutes is dropped."""
        start = time.perf_counter()
        seconds = self.deadline.remaining_seconds()
        proposal = self.solver.propose(self.state, budget_bytes, seed=self.seed, time_limit=seconds)
        schedule, peak_bytes, cost = _replayed(self.problem, proposal, self.solver)
        bound = proposal.lower_bound
        return Solution(
            schedule=schedule,
            peak_bytes=peak_bytes,
            cost=cost,
            status=Status.OPTIMAL if proposal.optimal and peak_bytes <= budget_bytes else Status.FEASIBLE,
            lower_bound=None if bound is None or bound > cost * (1 + 1e-9) else min(bound, cost),
            solve_seconds=time.perf_counter() - start,
            solver=self.solver.name,
            operations=tuple(proposal.operations),
        )

    def reachable(self, found: Solution) -> Solution:
        """A solution whose peak, asked for as a budget, is really met by the same solver and seed, if time allows."""
        for _ in range(_FLOOR_ATTEMPTS):
            if self.deadline.passed():
                break
            again = self.certified(found.peak_bytes)
            if again.peak_bytes <= found.peak_bytes:
                return again
            found = again
        return found


def _replayed(problem: Graph | Chain, proposal: Proposal, solver: Solver) -> tuple[np.ndarray, int, float]:
    """(schedule, peak bytes, cost) of a proposal."""
    if isinstance(problem, Chain):
        peak_bytes, cost = replay_operations(problem, proposal.operations)
        return np.asarray([stage for _, stage in proposal.operations], np.int32), peak_bytes, cost
    if proposal.schedule is None:
        raise GraphError(f"solver {solver.name!r} proposed no schedule for a graph")
    timeline = replay(problem, proposal.schedule)
    _require_pinned_once(problem, timeline.schedule, solver)
    return timeline.schedule, timeline.peak_bytes, timeline.cost


def _require_pinned_once(graph: Graph, schedule: np.ndarray, solver: Solver) -> None:
    ran = schedule[graph.pinned[schedule]]
    if not np.array_equal(ran, np.flatnonzero(graph.pinned)):
        raise GraphError(f"solver {solver.name!r} repeats or reorders pinned nodes: they ran as {ran.tolist()[:20]}")


def _refuse(problem: Graph | Chain, budget_bytes: int, smallest: Solution) -> None:
    message = (
        f"no schedule within {budget_bytes} bytes was found by {smallest.solver!r}; the smallest peak reached is "
        f"{smallest.peak_bytes} bytes ({smallest.peak_bytes / budget_bytes:.2f} times the budget). "
    )
    if isinstance(problem, Graph):
        message += _dominating(problem, replay(problem, smallest.schedule)) + ". "
    remedy = f"Raise the budget to at least {smallest.peak_bytes} bytes, or make the largest values smaller"
    raise BudgetError(message + remedy, min_peak_bytes=smallest.peak_bytes, budget_bytes=budget_bytes)


def _dominating(graph: Graph, timeline: Timeline) -> str:
    """What is live at the peak, largest first, by node name."""
    step = timeline.peak_step
    live = sorted(timeline.live_values(step).tolist(), key=lambda value: (-int(graph.value_bytes[value]), value))
    named = [
        f"{node_name(graph, int(graph.producer[v]))} ({int(graph.value_bytes[v])} bytes)" for v in live[:_NAMED_AT_PEAK]
    ]
    if len(live) > _NAMED_AT_PEAK:
        named.append(f"{len(live) - _NAMED_AT_PEAK} smaller values")
    node = int(timeline.schedule[step])
    if graph.workspace_bytes[node]:
        named.append(f"workspace ({int(graph.workspace_bytes[node])} bytes)")
    if graph.resident_bytes:
        named.append(f"arguments and parameters ({graph.resident_bytes} bytes)")
    return f"At the peak, while {node_name(graph, node)} runs, these are live: {', '.join(named) or 'nothing'}"


def node_name(graph: Graph, node: int) -> str:
    """The node's name for people, or `node 12`."""
    return graph.names[node] if graph.names else f"node {node}"
