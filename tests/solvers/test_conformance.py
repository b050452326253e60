"""Every solver on every kind of graph: valid, within budget, honestly reported, repeatable, with a reachable floor."""

import dataclasses

import numpy as np
import pytest
from free_order_oracle import slow_peak
from graph_oracles import gradient_chain

from jaxremat import BudgetError, Graph, replay, solve
from jaxremat.solvers import SOLVERS, Auto, Checkmate, Chen, FastSA, MinCut, Moccasin, Status

QUICK = FastSA(temperatures=(1e-2, 3e-2), moves=20_000, reheats=1, reheat_temperatures=(1e-2,), reheat_moves=10_000)
QUICK_SOLVERS = {
    "auto": Auto(first=QUICK, second=QUICK),
    "fastsa": QUICK,
    "moccasin": Moccasin(effort=0.2, search=QUICK),
}
GRAPH_SOLVERS = [name for name in SOLVERS if name != "rotor"]


def two_values_and_effects():
    return Graph(
        costs=np.array([1.0, 2, 0, 3, 1]),
        workspace_bytes=np.array([0, 5, 0, 1, 0]),
        value_bytes=np.array([4, 0, 3, 6, 2]),
        producer=np.array([0, 0, 1, 3, 4], np.int32),
        reads=np.array([[0, 1], [1, 2], [2, 2], [0, 3], [2, 4], [3, 4]], np.int32),
        is_output=np.array([False, False, False, True, True]),
        resident_bytes=7,
        pinned=np.array([True, False, True, False, False]),
        names=("load", "double", "print", "join", "loss"),
    )


ZOO = {
    "single node": Graph.from_arrays([5], [1], []),
    "nothing to keep": Graph.from_arrays([0, 0, 0], [0, 0, 0], [(0, 2)]),
    "disconnected": Graph.from_arrays([3, 4, 5, 6], [1, 2, 3, 4], [(0, 2)], outputs=[1]),
    "wide fan-out": Graph.from_arrays([2] + [3] * 20 + [1], [5] + [1] * 21, [(0, k) for k in range(1, 22)]),
    "wide fan-in": Graph.from_arrays([2] * 12 + [1], [1] * 13, [(k, 12) for k in range(12)]),
    "beyond 2**31 bytes": Graph.from_arrays([2**33 + 7] * 6, [1] * 6, [(0, 1), (1, 2), (2, 3), (0, 4), (3, 5), (4, 5)]),
    "several values, pinned nodes": two_values_and_effects(),
    "gradient chain": gradient_chain(6),
}


def made(name):
    return QUICK_SOLVERS.get(name, name)


@pytest.mark.parametrize("graph", ZOO.values(), ids=ZOO.keys())
@pytest.mark.parametrize("name", GRAPH_SOLVERS)
def test_solver_keeps_the_contract(name, graph):
    listed = replay(graph, np.arange(graph.num_nodes)).peak_bytes
    free = solve(graph, max(listed, 1), made(name))
    assert free.cost == pytest.approx(graph.costs.sum()) and free.solver == name
    try:
        tight = solve(graph, max(int(listed * 0.8), 1), made(name))
    except BudgetError as error:
        assert error.min_peak_bytes > error.budget_bytes
        tight = solve(graph, error.min_peak_bytes, made(name))
        assert tight.peak_bytes <= error.min_peak_bytes
    else:
        assert tight.peak_bytes <= int(listed * 0.8)
    assert tight.peak_bytes == slow_peak(graph, tight.schedule)
    assert tight.cost == pytest.approx(graph.costs[tight.schedule].sum())
    assert tight.status in (Status.OPTIMAL, Status.FEASIBLE)
    if tight.lower_bound is not None:
        assert tight.lower_bound <= tight.cost * (1 + 1e-9)
    pinned = tight.schedule[graph.pinned[tight.schedule]]
    assert np.array_equal(pinned, np.flatnonzero(graph.pinned))


@pytest.mark.parametrize("name", GRAPH_SOLVERS)
def test_equal_seeds_give_equal_schedules(name):
    graph = gradient_chain(6)
    first, second = (solve(graph, 8, made(name), seed=3) for _ in range(2))
    assert np.array_equal(first.schedule, second.schedule)


def test_auto_is_never_dearer_than_the_others():
    graph = gradient_chain(8)
    budget = 11
    rivals = [solve(graph, budget, solver).cost for solver in (Chen(), Checkmate(), MinCut(), QUICK)]
    assert solve(graph, budget).cost <= min(rivals)


def test_solvers_are_frozen_dataclasses_of_parameters():
    for name, solver in SOLVERS.items():
        assert dataclasses.is_dataclass(solver) and solver().name == name
