"""Schedules by solvers of graphs: for any program, of a size that a solver takes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_graphs import gradient_chain

from jaxremat.backends.devices import resolve_target
from jaxremat.base.errors import ArgumentError
from jaxremat.graph.graph import Graph
from jaxremat.graph.replay import replay
from jaxremat.planner.solver_schedules import SolverPlanner, forward_first, require_graphs, require_size, steps_within
from jaxremat.solvers import Checkmate, Chen, Moccasin, Rotor
from jaxremat.trace.primal import read_primal

ARGS = [jax.ShapeDtypeStruct((32, 32), jnp.float32)] * 6, jax.ShapeDtypeStruct((256, 32), jnp.float32)


def layered(ws, x):
    for w in ws:
        x = jnp.tanh(x @ w)
    return jnp.mean(x**2)


@pytest.fixture(scope="module")
def planner():
    return SolverPlanner(read_primal(layered, ARGS, 0, False), resolve_target("cpu"), Chen(), 0)


def test_outcomes_fit_and_repeat_nothing_where_that_is_not_asked_for(planner):
    plain = planner.plain
    assert planner.fit(plain.replayed_bytes) is plain
    found = planner.fit(int(0.8 * plain.replayed_bytes))
    assert found.replayed_bytes <= 0.8 * plain.replayed_bytes and found.cost > plain.cost
    assert found.form.emit == "schedule" and found.program.backward_start > 0


def test_the_least_is_the_smallest_that_the_solver_reaches(planner):
    (least,) = planner.least()
    assert planner.fit(1).replayed_bytes == least.replayed_bytes < planner.plain.replayed_bytes


def test_a_budget_out_of_reach_gets_the_smallest_peak():
    graph = gradient_chain(8)
    steps = steps_within(graph, 1, Chen(), 0)
    assert replay(graph, steps).peak_bytes < replay(graph, np.arange(16)).peak_bytes


def test_all_that_the_outputs_need_runs_before_the_backward():
    """Node 1 is an output of the forward, which the schedule makes after the first node of the backward."""
    graph = Graph.from_arrays([1] * 4, [1] * 4, [(0, 1), (0, 2), (2, 3)], outputs=[1, 3])
    graph = dataclasses.replace(graph, backward=np.array([False, False, True, True]))
    steps = forward_first(graph, np.array([0, 2, 1, 3]))
    assert steps.tolist().index(1) < steps.tolist().index(2)
    assert replay(graph, steps).cost == 4


def test_solvers_of_chains_take_no_program():
    with pytest.raises(ArgumentError, match="'rotor' solves chains"):
        require_graphs(Rotor())


@pytest.mark.parametrize("solver", [Checkmate(), Moccasin()])
def test_programs_that_are_too_large_are_refused_with_their_size(solver):
    require_size(gradient_chain(20), solver)
    with pytest.raises(ArgumentError, match="this one has 1400"):
        require_size(gradient_chain(700), solver)
    require_size(gradient_chain(700), Chen())
