"""Schedules by a solver of graphs, made ones that a gradient program can run.

Solvers know neither loops nor that a gradient's forward ends before its backward begins. Loops are decided as the
default search decides them for the same budget; what the results need runs before the first backward node.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import numpy as np

from jaxremat.backends.devices import Device
from jaxremat.base.errors import ArgumentError, BudgetError
from jaxremat.graph.graph import Graph
from jaxremat.graph.replay import replay
from jaxremat.graph.scheduled import first_backward, schedule_program
from jaxremat.planner.contract import Outcome, Traits
from jaxremat.planner.schedules import ScheduleOutcome, SchedulePlanner
from jaxremat.solvers.base import Solver
from jaxremat.solvers.mincut.assemble import forward_part
from jaxremat.solvers.solve import solve
from jaxremat.trace.primal import Primal

_CHAINS_ONLY = ("rotor",)
# In half a minute on two cores, of gradients of gated layers at .6 of their peak: checkmate proves nothing of 84 nodes,
# moccasin proves its best schedule of 84, and checkmate-lp takes all of the time for 178.
_MOST_NODES = {"checkmate": 120, "checkmate-lp": 200, "moccasin": 600}
_MOST_SECONDS = {"checkmate": 30.0, "checkmate-lp": 30.0, "moccasin": 20.0}  # for each of several questions
GRAINS = 128  # budgets are told apart in parts of the plain program's peak: solvers are slow


class SolverPlanner:
    """Schedules by a solver of graphs.

    Args:
      primal: the program.
      device: what its costs and bytes are for.
      solver: the solver.
      seed: for solvers that draw random numbers.

    Raises:
      ArgumentError: for a solver of chains, or a program too large for the solver.
    """

    traits = Traits()

    def __init__(self, primal: Primal, device: Device, solver: Solver, seed: int) -> None:
        require_graphs(solver)
        self.solver = solver
        self.seed = seed
        self.own = SchedulePlanner(primal, device)
        self._fits: dict[int, ScheduleOutcome] = {}
        self._outcomes: dict[bytes, ScheduleOutcome] = {}
        require_size(self.plain.problem.graph, solver)

    @property
    def plain(self) -> ScheduleOutcome:
        """The program as it stands."""
        return self.own.plain

    def fit(self, replayed_bytes: int) -> ScheduleOutcome:
        """The solver's outcome for a replayed peak, or the one with the smallest peak that it reached."""
        aim = min(replayed_bytes, self.own.fastest_bytes)
        if self.plain.replayed_bytes <= aim:
            return self.plain
        grain = max(1, self.plain.replayed_bytes // GRAINS)
        return self._fit(max(1, aim // grain * grain))

    def least(self) -> Sequence[ScheduleOutcome]:
        """The outcome with the smallest replayed peak that the solver reaches."""
        return [self.fit(1)]

    def near_misses(self, best: Outcome, cost: float, peak_bytes: int) -> Sequence[Outcome]:
        """None: a solver has one answer per budget."""
        return ()

    def _fit(self, budget_bytes: int) -> ScheduleOutcome:
        if budget_bytes not in self._fits:
            problem = self.own.fit(budget_bytes).problem
            steps = steps_within(problem.graph, budget_bytes, self.solver, self.seed)
            program = schedule_program(problem.graph, forward_first(problem.graph, steps))
            timeline = replay(problem.graph, program.steps)
            made = ScheduleOutcome(problem, program, timeline.peak_bytes, timeline.cost)
            self._fits[budget_bytes] = self._outcomes.setdefault(program.steps.tobytes(), made)
        return self._fits[budget_bytes]


def steps_within(graph: Graph, budget_bytes: int, solver: Solver, seed: int) -> np.ndarray:
    """[T] the schedule of a solver for a replayed peak, or the one with the smallest peak that it reaches."""
    ask = functools.partial(solve, graph, solver=solver, seed=seed, time_limit=_MOST_SECONDS.get(solver.name))
    with jax.ensure_compile_time_eval():
        try:
            return ask(budget=budget_bytes).schedule
        except BudgetError as error:
            return ask(budget=error.min_peak_bytes).schedule


def require_graphs(solver: Solver) -> None:
    """Raises ArgumentError for a solver of chains."""
    if solver.name in _CHAINS_ONLY:
        raise ArgumentError(
            f"solver {solver.name!r} solves chains, and a program's gradient is a graph: plan with 'auto', 'fastsa'"
            " or 'chen', or solve a jaxremat.Chain with jaxremat.solve"
        )


def require_size(graph: Graph, solver: Solver) -> None:
    """Raises ArgumentError for a program that is too large for a solver."""
    most = _MOST_NODES.get(solver.name)
    if most is not None and graph.num_nodes > most:
        raise ArgumentError(
            f"solver {solver.name!r} takes gradient programs of up to {most} operations in bearable time; this"
            f" one has {graph.num_nodes}. Plan with 'auto' or 'fastsa'."
        )


def forward_first(graph: Graph, schedule: np.ndarray) -> np.ndarray:
    """A schedule in which all that the forward's outputs need, and its effects, run before the first backward node.

    Args:
      graph: a joint graph.
      schedule: [T] node ids.

    Returns:
      [T] int32: what ran too late runs right before the first backward node, and its result is kept.
    """
    steps = np.asarray(schedule, np.int64)
    start = first_backward(graph.backward, steps)
    if start == steps.size:
        return steps.astype(np.int32)
    ran = np.zeros(graph.num_nodes, bool)
    ran[steps[:start]] = True
    late = [node for node in forward_part(graph, np.zeros(graph.num_values, bool)) if not ran[node]]
    rest = steps[start:]
    if not late:
        return steps.astype(np.int32)
    _, first = np.unique(rest, return_index=True)
    moved = first[np.isin(rest[first], late)]
    return np.concatenate([steps[:start], late, np.delete(rest, moved)]).astype(np.int32)
