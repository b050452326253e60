"""Rotor against all persistent plans, Revolve's closed form, and a simulator of its own."""

import math

import numpy as np
import pytest
from chain_oracles import chains, persistent_plans, simulated, unit_chain
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxremat
from jaxremat.graph.replay import replay_operations
from jaxremat.solvers import Rotor, Status


@settings(max_examples=60, deadline=None, derandomize=True)
@given(chains(), st.floats(0, 1))
def test_no_persistent_plan_is_faster_or_smaller(chain, tightness):
    points = [simulated(chain, plan) for plan in persistent_plans(1, chain.num_stages)]
    smallest, largest = min(peak for peak, _ in points), max(peak for peak, _ in points)
    budget = max(smallest + int(tightness * (largest - smallest)), 1)
    proposal = Rotor().propose(chain, budget)
    peak, seconds = simulated(chain, proposal.operations)
    assert (peak, seconds) == replay_operations(chain, proposal.operations)
    assert peak <= budget
    assert seconds == min(s for p, s in points if p <= budget)
    assert proposal.optimal and proposal.lower_bound == seconds


@settings(max_examples=30, deadline=None, derandomize=True)
@given(chains())
def test_impossible_budgets_get_the_smallest_peak(chain):
    smallest = min(simulated(chain, plan)[0] for plan in persistent_plans(1, chain.num_stages))
    proposal = Rotor().propose(chain, smallest - 1)
    assert simulated(chain, proposal.operations)[0] == smallest
    assert not proposal.optimal


def fewest_forwards(length, checkpoints):
    """Griewank & Walther: forward steps to reverse a uniform chain, the taped step not counted."""
    beta = lambda s, r: math.comb(s + r, s)
    repeats = next(r for r in range(length + 1) if beta(checkpoints, r) >= length)
    return repeats * length - beta(checkpoints + 1, repeats - 1) if repeats else 0


@pytest.mark.parametrize("checkpoints", [1, 2, 3, 5, 9])
@pytest.mark.parametrize("length", [2, 10, 37])
def test_uniform_chains_meet_the_closed_form_of_revolve(length, checkpoints):
    tape = 50  # too large to be kept in place of a checkpoint; the input is free, the output in use is charged
    zeros = np.zeros(length, int)
    chain = unit_chain(
        length, saved_bytes=np.full(length, tape), gradient_bytes=zeros, backward_seconds=zeros, input_bytes=0
    )
    seconds = simulated(chain, Rotor().propose(chain, tape + checkpoints).operations)[1]
    assert seconds == length + fewest_forwards(length, checkpoints)


SHORT = {"c": "forward_checkpoint", "n": "forward_none", "a": "forward_all", "b": "backward"}


@pytest.mark.parametrize(
    "budget, plan",
    [
        (12, "a1 a2 a3 b3 b2 b1"),
        (10, "a1 c2 a3 b3 a2 b2 b1"),
        (8, "c1 c2 a3 b3 a2 b2 a1 b1"),
        (7, "c1 n2 a3 b3 c1 a2 b2 a1 b1"),
    ],
)
def test_golden_plans_of_a_chain_of_three(budget, plan):
    chain = unit_chain(3, saved_bytes=np.full(3, 3))
    proposal = Rotor().propose(chain, budget)
    assert proposal.operations == tuple((SHORT[step[0]], int(step[1])) for step in plan.split())
    assert simulated(chain, proposal.operations)[0] == budget


def test_rounded_sizes_never_overrun_and_finer_slots_never_lose():
    rng = np.random.default_rng(3)
    length = 60
    output = rng.integers(2**31, 2**33, length)
    chain = unit_chain(
        length,
        output_bytes=output,
        saved_bytes=output + rng.integers(0, 2**33, length),
        gradient_bytes=output,
        forward_seconds=rng.random(length),
        backward_seconds=rng.random(length),
        input_bytes=12345678901,
    )
    everything = chain.input_bytes + int(chain.saved_bytes.sum())
    best = {}
    for slots in (60, 500):
        for share in (0.2, 0.3, 0.5):
            budget = int(share * everything)
            peak, seconds = simulated(chain, Rotor(slots=slots).propose(chain, budget).operations)
            assert peak <= budget
            best[slots, share] = seconds
    for share in (0.2, 0.3, 0.5):
        assert best[500, share] <= best[60, share] * 1.01
    assert best[500, 0.5] <= best[500, 0.3] <= best[500, 0.2]


def test_solve_certifies_chains_and_names_a_reachable_floor():
    chain = unit_chain(30)
    solution = jaxremat.solve(chain, 10, solver="rotor")
    assert solution.status is Status.OPTIMAL
    assert (solution.peak_bytes, solution.cost) == simulated(chain, solution.operations)
    with pytest.raises(jaxremat.BudgetError) as refused:
        jaxremat.solve(chain, 2, solver="rotor")
    floor = refused.value.min_peak_bytes
    assert jaxremat.solve(chain, floor, solver="rotor").peak_bytes == floor


def test_graphs_are_refused_by_name():
    graph = jaxremat.Graph.from_arrays([1], [1], [])
    with pytest.raises(jaxremat.ArgumentError, match="rotor"):
        Rotor().propose(graph, 10)


@pytest.mark.parametrize(
    "operations, message",
    [
        ([("forward_all", 2)], "without the output of stage 1"),
        ([("backward", 1)], "without its saved set"),
        ([("sideways", 1)], "kinds are"),
        ([("forward_all", 1)], "never reach the gradient"),
    ],
)
def test_operations_that_cannot_run_are_refused(operations, message):
    with pytest.raises(jaxremat.GraphError, match=message):
        replay_operations(unit_chain(2), operations)
