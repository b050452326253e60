"""The entrance: what it accepts, what it refuses and what its errors say."""

import dataclasses
import time
from typing import ClassVar

import numpy as np
import pytest
from graph_oracles import gradient_chain

from jaxremat import ArgumentError, BudgetError, Chain, Graph, GraphError, solve
from jaxremat.solvers import SOLVERS, FastSA, Proposal, Status
from jaxremat.solvers.base import state_of

QUICK = FastSA(temperatures=(1e-2,), moves=20_000, reheats=1, reheat_temperatures=(1e-2,), reheat_moves=5_000)


@dataclasses.dataclass(frozen=True)
class Fixed:
    """Proposes what it is told to."""

    schedule: tuple[int, ...]
    name: ClassVar[str] = "fixed"

    def propose(self, problem, budget_bytes, *, seed, time_limit):
        return Proposal(np.asarray(self.schedule), optimal=True)


def unit_chain(length):
    ones = np.ones(length, int)
    return Chain(ones, ones, ones, ones, ones, 0 * ones, 0 * ones, 1)


def test_numbers_come_from_the_replay():
    graph = gradient_chain(3)
    solution = solve(graph, 100, Fixed((0, 1, 0, 2, 3, 4, 5)))
    assert (solution.cost, solution.status, solution.solver) == (7, Status.OPTIMAL, "fixed")


@pytest.mark.parametrize("schedule", [(0, 1), (1, 0, 2, 3, 4, 5), (0, 1, 2, 3, 4, 9)])
def test_broken_proposals_are_refused(schedule):
    with pytest.raises(GraphError):
        solve(gradient_chain(3), 100, Fixed(schedule))


def test_a_proposal_that_repeats_a_pinned_node_is_refused():
    graph = dataclasses.replace(gradient_chain(2), pinned=np.array([True, False, False, True]))
    with pytest.raises(GraphError, match="pinned"):
        solve(graph, 100, Fixed((0, 0, 1, 2, 3)))


@dataclasses.dataclass(frozen=True)
class Counting:
    """A solver in two halves, which notes how often the first is asked for."""

    inits: list
    name: ClassVar[str] = "counting"

    def init(self, problem):
        self.inits.append(problem)
        return "state"

    def propose(self, state, budget_bytes, *, seed, time_limit):
        assert state == "state"
        return Proposal(np.arange(6))


def test_a_solver_with_state_is_asked_for_it_once():
    solver = Counting([])
    with pytest.raises(BudgetError):
        solve(gradient_chain(3), 1, solver)
    assert len(solver.inits) == 1
    assert state_of(Fixed((0,)), gradient_chain(3)).num_nodes == 6, "the state of others is the problem"


def test_names_classes_and_instances_are_accepted():
    graph = gradient_chain(3)
    for solver in ("chen", SOLVERS["chen"], SOLVERS["chen"]()):
        assert solve(graph, 100, solver).solver == "chen"


def test_unknown_solvers_are_told_the_names():
    with pytest.raises(ArgumentError, match=r"fastsa.*rotor.*checkmate.*moccasin.*chen") as caught:
        solve(gradient_chain(3), 100, "annealing")
    assert isinstance(caught.value, ValueError)
    with pytest.raises(ArgumentError, match="not a solver"):
        solve(gradient_chain(3), 100, 7)


@pytest.mark.parametrize("budget", [0, -5, 1.5, True, "12GiB", None, float("nan")])
def test_malformed_budgets_are_refused(budget):
    with pytest.raises(ArgumentError, match="budget"):
        solve(gradient_chain(3), budget, "chen")


def test_integers_of_numpy_are_bytes():
    assert solve(gradient_chain(3), np.int64(100), "chen").peak_bytes <= 100


def test_other_problems_and_time_limits_are_refused():
    with pytest.raises(ArgumentError, match="Graph"):
        solve([1, 2, 3], 100)
    with pytest.raises(ArgumentError, match="time_limit"):
        solve(gradient_chain(3), 100, time_limit=0)


def test_chains_go_to_rotor_and_graphs_do_not():
    assert solve(unit_chain(5), 100).operations
    with pytest.raises(ArgumentError, match="Graph"):
        solve(gradient_chain(3), 100, "rotor")
    for name in ("fastsa", "moccasin", "chen", "checkmate"):
        with pytest.raises(ArgumentError, match=r"[Cc]hain"):
            solve(unit_chain(5), 100, name)


def test_impossible_budgets_name_the_floor_and_what_fills_it():
    graph = Graph.from_arrays([7, 90, 3], [1, 1, 1], [(0, 1), (1, 2)], resident_bytes=11, names=("x", "wide", "loss"))
    with pytest.raises(BudgetError) as caught:
        solve(graph, 50, QUICK)
    message = str(caught.value)
    assert caught.value.min_peak_bytes == 11 + 97 and caught.value.budget_bytes == 50
    assert "wide (90 bytes)" in message and "11 bytes" in message and "108" in message
    assert solve(graph, caught.value.min_peak_bytes, QUICK).peak_bytes == 108


def test_time_limit_is_kept():
    graph = gradient_chain(60)
    solver = FastSA(moves=50_000_000, reheats=0)
    solve(graph, 55, FastSA(moves=1_000, reheats=0))
    start = time.perf_counter()
    solve(graph, 55, solver, time_limit=1.0)
    unlimited_seconds = 50_000_000 * 1e-6  # at the least: the annealer needs about a microsecond a move
    assert time.perf_counter() - start < unlimited_seconds
