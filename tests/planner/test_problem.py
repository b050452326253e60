"""A traced program as a problem: what may run again, and at what price."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec

from jaxremat.backends.devices import resolve_target
from jaxremat.graph.replay import replay
from jaxremat.graph.scheduled import BARRIER_SCOPES
from jaxremat.loops.decide import Loops
from jaxremat.planner.problem import pose
from jaxremat.planner.schedules import SchedulePlanner
from jaxremat.solvers.mincut.search import Search
from jaxremat.trace.primal import read_primal

CPU = resolve_target("cpu")
W, X = jnp.ones((8, 8)) / 9, jnp.ones((32, 8))


def problem_of(fun, *args, decided=False, price=1e-9):
    primal = read_primal(fun, args, 0, False)
    return pose(primal, CPU, Loops(primal, CPU).decide(price) if decided else ())


def nodes_of(problem, name):
    return [node for node, eqn in enumerate(problem.joint.eqns) if eqn.primitive.name == name]


def looping(w, x):
    x = jnp.tanh(x @ w)
    x = lax.scan(lambda c, _: (jnp.tanh(c @ w), None), x, None, length=7)[0]
    return jnp.sum(jnp.sin(x @ w))


def test_running_again_costs_its_time():
    problem = problem_of(looping, W, X)
    assert np.array_equal(problem.run_seconds, problem.graph.costs)
    assert problem.in_order.is_in_order and problem.in_order.steps.size == len(problem.joint.eqns)
    assert replay(problem.graph, problem.in_order.steps).cost == pytest.approx(problem.graph.costs.sum())


def test_loops_that_were_decided_never_run_again():
    problem = problem_of(looping, W, X, decided=True)
    scans = nodes_of(problem, "scan")
    assert len(problem.loops) == 1 and len(scans) == 2
    assert np.isinf(problem.run_seconds[scans]).all() and np.isinf(problem.run_seconds).sum() == 2


def printing(w, x):
    for k in range(12):
        x = jnp.tanh(x @ w)
        if k == 5:
            jax.debug.callback(lambda v: None, x)
    return jnp.sum(x)


@pytest.mark.parametrize("decided", [False, True])
def test_effects_never_run_again(decided):
    def fun(w, x):
        return printing(w, x) + looping(w, x)

    problem = problem_of(fun, W, X, decided=decided)
    (callback,) = nodes_of(problem, "debug_callback")
    assert np.isinf(problem.run_seconds[callback])
    search = Search(problem.graph, problem.run_seconds)
    once = np.flatnonzero(np.isinf(problem.run_seconds))
    found = [*search.smallest_of_each_shape(), search.smallest]
    assert search.smallest.cost > search.plain.cost
    for candidate in found:
        assert (np.bincount(candidate.program.steps)[once] == 1).all()


def test_what_communicates_is_run_again_last():
    """Beside a product of the same time, a collective is the dearer one to run again, but may."""
    mesh = jax.make_mesh((1,), ("data",))
    spec = PartitionSpec()

    def fun(w, x):
        total = jax.shard_map(lambda y: lax.psum(y, "data"), mesh=mesh, in_specs=spec, out_specs=spec)
        return jnp.sum(jnp.sin(total(jnp.tanh(x @ w))))

    problem = problem_of(fun, W, X)
    dearer = problem.run_seconds > problem.graph.costs
    assert dearer[nodes_of(problem, "shard_map")].any() and np.isfinite(problem.run_seconds).all()
    assert not dearer[[n for n in range(dearer.size) if n not in nodes_of(problem, "shard_map")]].any()


def test_a_body_is_solved_once():
    loops = Loops(read_primal(looping, (W, X), 0, False), CPU)
    (loop,) = loops.found
    assert loops.hull(loop) is loops.hull(loop)


def test_one_outcome_per_schedule():
    planner = SchedulePlanner(read_primal(printing, (W, X), 0, False), CPU)
    high = planner.plain.replayed_bytes
    first, second = planner.fit(int(0.8 * high)), planner.fit(int(0.8 * high))
    assert first is second and first.replayed_bytes <= 0.8 * high
    assert first.peak_bytes == first.timeline.peak_bytes == replay(first.problem.graph, first.program.steps).peak_bytes
    assert planner.fit(high) is planner.plain
    few = planner.least()
    assert {o.program.barrier_scope for o in few} == set(BARRIER_SCOPES)
    assert min(o.replayed_bytes for o in few) == planner.fit(1).replayed_bytes


def test_with_loops_smaller_budgets_are_kept_too():
    planner = SchedulePlanner(read_primal(looping, (W, X), 0, False), CPU)
    budget = int(0.8 * planner.plain.replayed_bytes)
    outcome = planner.fit(budget)
    assert outcome.replayed_bytes <= budget and outcome.problem.loops
    once = np.isinf(outcome.problem.run_seconds)
    assert (np.bincount(outcome.program.steps)[once] == 1).all()
