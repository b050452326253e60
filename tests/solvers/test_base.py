"""The contract of solvers: which problems they take, and who prepares what once."""

import dataclasses
from typing import ClassVar

import pytest
from chain_oracles import unit_chain
from small_graphs import gradient_chain

from jaxremat.base.errors import ArgumentError
from jaxremat.solvers import SOLVERS
from jaxremat.solvers.base import Proposal, Solver, StatefulSolver, require_chain, require_graph, state_of

GRAPH, CHAIN = gradient_chain(3), unit_chain(3)


@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_keeps_the_protocol(name):
    solver = SOLVERS[name]()
    assert isinstance(solver, Solver) and solver.name == name
    assert dataclasses.is_dataclass(solver) and type(solver).__dataclass_params__.frozen


def test_problems_of_the_other_kind_are_refused_with_who_takes_them():
    assert require_graph(GRAPH, "x") is GRAPH and require_chain(CHAIN, "x") is CHAIN
    with pytest.raises(ArgumentError, match="'x' takes a Graph, not a Chain; chains go to 'rotor'"):
        require_graph(CHAIN, "x")
    with pytest.raises(ArgumentError, match="'x' takes a Chain, not a Graph; graphs go to 'auto'"):
        require_chain(GRAPH, "x")


@dataclasses.dataclass(frozen=True)
class Plain:
    name: ClassVar[str] = "plain"

    def propose(self, problem, budget_bytes, *, seed, time_limit):
        return Proposal()


@dataclasses.dataclass(frozen=True)
class Prepared(Plain):
    def init(self, problem):
        return "state", problem


def test_a_solver_in_one_half_takes_the_problem_itself():
    assert state_of(Plain(), GRAPH) is GRAPH and not isinstance(Plain(), StatefulSolver)
    assert state_of(Prepared(), GRAPH) == ("state", GRAPH) and isinstance(Prepared(), StatefulSolver)
