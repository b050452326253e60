"""Moccasin: both backends."""

import numpy as np
import pytest
from free_order_oracle import least_cost
from graph_oracles import gradient_chain

from jaxremat import ArgumentError, solve
from jaxremat.solvers import FastSA, Moccasin, Status

QUICK = FastSA(temperatures=(1e-2, 3e-2), moves=20_000, reheats=1, reheat_temperatures=(1e-2,), reheat_moves=10_000)


@pytest.mark.parametrize("backend", ["cp-sat", "search"])
def test_backends_agree_on_a_gradient_chain(backend):
    if backend == "cp-sat":
        pytest.importorskip("ortools")
    graph = gradient_chain(4)
    solution = solve(graph, 4, Moccasin(backend=backend, search=QUICK))
    assert solution.peak_bytes <= 4 and solution.cost == least_cost(graph, 4) > 8
    assert solution.status is (Status.OPTIMAL if backend == "cp-sat" else Status.FEASIBLE)
    assert np.bincount(solution.schedule).max() <= 2


def test_unknown_backends_are_told_the_names():
    with pytest.raises(ArgumentError, match="cp-sat, search"):
        Moccasin(backend="gurobi")
