"""plan(solver=...): a solver's schedule becomes a gradient program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxremat
from jaxremat.planner.solver_schedules import forward_first


def program(w, x):
    h = jnp.tanh(x @ w)
    for _ in range(5):
        h = jnp.tanh(h @ w) + jnp.sin(h)
    return jnp.sum(h * h), h.mean()


W = np.random.default_rng(0).normal(size=(32, 32)).astype(np.float32) / 6
X = np.random.default_rng(1).normal(size=(256, 32)).astype(np.float32)


@pytest.mark.parametrize("solver", [pytest.param("fastsa", marks=pytest.mark.slow), "chen", "chen-recursive"])
def test_a_solver_plans_and_the_gradient_stays(solver):
    plan = jaxremat.plan(program, W, X, budget=0.75, has_aux=True, solver=solver)
    assert plan.solver == solver
    assert plan.compiled.peak_bytes <= plan.budget_bytes
    plain, _ = jax.jit(jax.grad(program, has_aux=True))(W, X)
    planned, _ = jax.jit(jax.grad(plan.apply(program), has_aux=True))(W, X)
    np.testing.assert_allclose(plain, planned, rtol=1e-4, atol=1e-4)


def test_solvers_run_inside_a_trace():
    wrapped = jaxremat.remat(lambda w, x: program(w, x)[0], budget=0.7, solver="chen")
    planned = jax.jit(jax.grad(wrapped))(W, X)
    np.testing.assert_allclose(jax.grad(lambda w: program(w, X)[0])(W), planned, rtol=1e-4, atol=1e-4)


def test_a_solver_of_chains_and_programs_too_large_are_refused():
    with pytest.raises(jaxremat.ArgumentError, match="chains"):
        jaxremat.plan(program, W, X, budget=0.7, has_aux=True, solver="rotor")

    def deep(w, x):
        for _ in range(40):
            x = jnp.tanh(x @ w)
        return x.sum()

    with pytest.raises(jaxremat.ArgumentError, match="takes gradient programs of up to"):
        jaxremat.plan(deep, W, X, budget=0.7, solver="checkmate")


def test_results_run_before_the_backward():
    graph = jaxremat.trace(program, W, X, has_aux=True)
    forward, backward = np.flatnonzero(~graph.backward), np.flatnonzero(graph.backward)
    late = graph.producer[np.flatnonzero(graph.is_output & ~graph.backward[graph.producer])[-1]]
    ready = [n for n in backward if all(graph.backward[graph.producer[v]] for v in graph.values_read[n])]
    early = ready[:1]
    schedule = np.asarray([n for n in forward if n < late] + early + [n for n in forward if n >= late] + list(backward))
    legal = forward_first(graph, schedule)
    start = int(graph.backward[legal].argmax())
    assert late in legal[:start]
    assert jaxremat.replay(graph, legal).cost <= jaxremat.replay(graph, schedule).cost
