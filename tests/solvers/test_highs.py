"""HiGHS on a model: bounds, limits and what is left out."""

import numpy as np
from graph_oracles import gradient_chain

from jaxremat.graph.replay import replay
from jaxremat.solvers.checkmate_model import COST_SCALE, build_model
from jaxremat.solvers.highs import minimize

MODEL = build_model(gradient_chain(4), 4)


def best():
    return minimize(MODEL, integral=True, seconds=20)


def runs_of(result):
    return result.x[: MODEL.columns.num_runs] > 0.5


def test_the_relaxation_bounds_the_program():
    relaxed = minimize(MODEL, integral=False, seconds=20)
    assert relaxed.solved and best().solved
    assert COST_SCALE <= relaxed.bound <= best().bound + 1e-6
    schedule = MODEL.schedule(MODEL.runs(best().x) > 0.5)
    assert replay(gradient_chain(4), schedule).cost == best().bound * MODEL.cost_unit


def test_a_bound_below_the_best_leaves_nothing():
    limited = minimize(MODEL, integral=True, seconds=20, most_objective=best().bound - COST_SCALE / 10)
    assert limited.infeasible and limited.x is None and not limited.solved


def test_runs_that_are_not_wanted_do_not_come_back():
    first = best()
    second = minimize(MODEL, integral=True, seconds=20, excluded=[runs_of(first)])
    assert second.solved and (runs_of(second) != runs_of(first)).any() and second.bound >= first.bound - 1e-6


def test_a_budget_that_nothing_meets_is_infeasible():
    assert minimize(build_model(gradient_chain(4), 1), integral=False, seconds=20).infeasible
    assert np.isfinite(best().bound)
