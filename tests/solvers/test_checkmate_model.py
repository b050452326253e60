"""The mixed-integer program of staged schedules: its points are schedules, and its rows hold what a replay holds."""

import dataclasses
import itertools

import numpy as np
from graph_oracles import gradient_chain
from hypothesis import given, settings
from small_graphs import graphs

from jaxremat.base.errors import GraphError
from jaxremat.graph.replay import replay
from jaxremat.solvers.checkmate_model import COST_SCALE, build_model, memory_entries, peak_model
from jaxremat.solvers.highs import minimize


def test_memory_entries_bound_the_rows():
    graph = gradient_chain(10)
    model = build_model(graph, 8)
    assert 0 < model.matrix[np.flatnonzero(model.is_memory)].nnz <= 2 * memory_entries(graph, 8)


def matrices_of_runs(graph):
    """Every choice of what runs again in which stage, the last node's own stage included."""
    n = graph.num_nodes
    below = [(stage, node) for stage in range(n) for node in range(stage)]
    for chosen in itertools.product([False, True], repeat=len(below)):
        runs = np.eye(n, dtype=bool)
        for (stage, node), again in zip(below, chosen):
            runs[stage, node] = again
        yield runs


def point_of(model, runs):
    """The best point with given runs, by the linear program; None where there is none."""
    lower, upper = model.lower.copy(), model.upper.copy()
    fixed = runs[np.tril_indices(runs.shape[0])].astype(float)
    if (fixed < lower[: fixed.size]).any() or (fixed > upper[: fixed.size]).any():
        return None
    lower[: fixed.size] = upper[: fixed.size] = fixed
    bounded = type(model)(**{**vars(model), "lower": lower, "upper": upper})
    return minimize(bounded, integral=False, seconds=5).x


@settings(max_examples=12, deadline=None, derandomize=True)
@given(graphs(most_nodes=3, pinned=True))
def test_exactly_the_runs_of_schedules_that_fit_are_points(graph):
    budget = replay(graph, np.arange(graph.num_nodes)).peak_bytes
    model = build_model(graph, budget)
    for runs in matrices_of_runs(model.graph):
        schedule = model.schedule(runs)
        repeated = np.bincount(schedule, minlength=graph.num_nodes) > 1
        try:
            fits = replay(graph, schedule).peak_bytes <= budget and not (repeated & graph.pinned).any()
        except GraphError:
            fits = False
        stays = model.graph.num_nodes == graph.num_nodes or not runs[-1, :-1].any()
        if stays:
            assert (point_of(model, runs) is not None) == fits


def test_one_run_of_everything_costs_the_scale():
    graph = gradient_chain(4)
    model = build_model(graph, 100)
    assert model.objective[: model.columns.num_runs] @ model.lower[: model.columns.num_runs] == COST_SCALE
    assert model.cost_unit * COST_SCALE == graph.costs.sum()


def test_dear_nodes_run_once():
    graph = dataclasses.replace(gradient_chain(4), costs=np.array([1.0, 5, 1, 1, 1, 1, 1, 1]))
    model = build_model(graph, 4, dearest_rerun=4.0)
    assert model.upper[[model.columns.run(stage, 1) for stage in range(2, 8)]].max() == 0
    assert model.upper[[model.columns.run(stage, 2) for stage in range(3, 8)]].min() == 1


def test_the_peak_as_an_objective_is_the_smallest_staged_peak():
    graph = gradient_chain(3)
    found = minimize(peak_model(build_model(graph, 1)), integral=True, seconds=10)
    assert found.solved and found.x[-1] == 3  # two values and a cotangent
