"""What any planner's outcomes are compared by, against the definitions."""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxremat.backends.devices import resolve_target
from jaxremat.planner.contract import cheapest_within, fastest_bytes, left_behind, saving
from jaxremat.planner.schedules import SchedulePlanner
from jaxremat.planner.solver_schedules import SolverPlanner
from jaxremat.solvers import Chen
from jaxremat.trace.primal import read_primal


@dataclasses.dataclass(frozen=True)
class Told:
    replayed_bytes: int
    cost: float
    problem: object = None


OUTCOMES = st.lists(st.builds(Told, st.integers(1, 20), st.integers(1, 20)), min_size=1, max_size=8)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(OUTCOMES, st.integers(1, 20))
def test_the_cheapest_within_is_the_smallest_of_equal_ones_or_the_smallest_of_all(outcomes, budget):
    best = cheapest_within(outcomes, budget)
    fitting = [each for each in outcomes if each.replayed_bytes <= budget]
    for other in fitting:
        assert (best.cost, best.replayed_bytes) <= (other.cost, other.replayed_bytes)
    if not fitting:
        assert best.replayed_bytes == min(each.replayed_bytes for each in outcomes)


ARGS = [jax.ShapeDtypeStruct((16, 16), jnp.float32)] * 4, jax.ShapeDtypeStruct((64, 16), jnp.float32)


def layered(ws, x):
    for w in ws:
        x = jnp.tanh(x @ w)
    return jnp.mean(x**2)


PLANNER = SchedulePlanner(read_primal(layered, ARGS, 0, False), resolve_target("cpu"))


def test_what_is_left_behind_is_what_the_backward_reads_of_the_forward():
    """Four layers' results of 64 x 16 numbers; the last one's square reads it, too."""
    assert left_behind(PLANNER.plain) >= 4 * 64 * 16 * 4
    assert left_behind(PLANNER.leaving(0)) < left_behind(PLANNER.plain)


def test_only_some_planners_bound_what_is_left_behind():
    assert saving(PLANNER) is PLANNER
    assert saving(SolverPlanner(read_primal(layered, ARGS, 0, False), resolve_target("cpu"), Chen(), 0)) is None


@pytest.mark.parametrize("rate", [0.0, 1e-9])
def test_memory_that_takes_time_to_be_made_ready_may_be_worth_less_of_it(rate):
    """A slower outcome in fewer bytes is the fastest where new pages cost more than it does."""
    problem = PLANNER.plain.problem
    device = dataclasses.replace(problem.device, first_touch_seconds_per_byte=rate)
    posed = dataclasses.replace(problem, device=device)
    resident = problem.graph.resident_bytes
    plain, smaller = Told(resident + 2**30, 1.0, posed), Told(resident + 2**29, 1.2, posed)
    found = fastest_bytes(plain, [smaller])
    if rate:
        assert found == max(smaller.replayed_bytes, resident + (device.backend.reused_bytes or 0))
    else:
        assert found == sys.maxsize
