"""The prediction writes the program that would be emitted, and follows what the compiler keeps of it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxremat.cost.devices import resolve_target
from jaxremat.planner.prediction import is_toy, predict
from jaxremat.planner.problem import pose
from jaxremat.planner.search import Search
from jaxremat.schedule import replay
from jaxremat.trace.joint import read_primal

WIDTH, LAYERS = 256, 10


def layered(ws, x):
    for w in ws:
        x = jnp.tanh(x @ w) * jnp.full(x.shape, 0.5)
    return jnp.sum(x**2)


def search_of(rows):
    shape = lambda *dims: jax.ShapeDtypeStruct(dims, jnp.float32)
    primal = read_primal(layered, ([shape(WIDTH, WIDTH)] * LAYERS, shape(rows, WIDTH)), 0, False)
    problem = pose(primal, resolve_target("cpu"))
    return problem, Search(problem.graph, problem.run_seconds)


LARGE, LARGE_SEARCH = search_of(8192)
SMALLEST = LARGE_SEARCH.smallest


def test_toy_programs_are_replayed():
    problem, search = search_of(32)
    assert is_toy(problem.graph) and not is_toy(LARGE.graph)
    predicted = predict(problem.joint, problem.graph, search.smallest.schedule, "cpu")
    assert predicted.live_bytes.tolist() == replay(problem.graph, search.smallest.schedule).live_bytes.tolist()


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_less_kept_is_less_predicted(platform):
    graph, joint = LARGE.graph, LARGE.joint
    plain = predict(joint, graph, LARGE.in_order, platform)
    small = predict(joint, graph, SMALLEST.schedule, platform, SMALLEST.fences, SMALLEST.start)
    activation = 8192 * WIDTH * 4
    assert plain.peak_bytes - graph.resident_bytes >= (LAYERS - 1) * activation
    assert small.peak_bytes < 0.75 * plain.peak_bytes
    for timeline in (plain, small):
        assert timeline.live_bytes.min() >= graph.resident_bytes
        assert timeline.live_bytes.size == timeline.schedule.size
        assert timeline.schedule.min() >= 0 and timeline.schedule.max() < graph.num_nodes
    assert small.cost > plain.cost == pytest.approx(graph.costs.sum())


def test_spans_are_values_of_the_graph():
    timeline = predict(LARGE.joint, LARGE.graph, SMALLEST.schedule, "cpu", SMALLEST.fences, SMALLEST.start)
    value, first, last = timeline.spans.T
    assert ((value >= 0) & (value < LARGE.graph.num_values)).all() and timeline.span_bytes.size == value.size
    assert ((first >= 0) & (first <= last) & (last < timeline.live_bytes.size)).all()
    again = np.flatnonzero(np.bincount(SMALLEST.schedule) > 1)
    shown = np.unique(LARGE.graph.producer[value])
    assert np.isin(again, shown).sum() > LAYERS / 2, "what is recomputed is on the timeline"


@pytest.mark.parametrize("fenced", ["all", "sources"])
def test_every_way_to_fence_is_predicted(fenced):
    timeline = predict(LARGE.joint, LARGE.graph, SMALLEST.schedule, "cpu", fenced=fenced)
    assert timeline.peak_bytes < predict(LARGE.joint, LARGE.graph, LARGE.in_order, "cpu").peak_bytes


def test_prediction_is_deterministic():
    again = pose(dataclasses.replace(LARGE.primal), resolve_target("cpu"))
    first, second = (predict(p.joint, p.graph, SMALLEST.schedule, "cuda") for p in (LARGE, again))
    assert first.live_bytes.tolist() == second.live_bytes.tolist()
