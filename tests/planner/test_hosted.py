"""When copies run over a link, by a clock; and schedules with some of their values moved."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxremat.backends.devices import resolve_target
from jaxremat.graph.replay import replay
from jaxremat.planner.hosted import Hosting, Pace
from jaxremat.planner.problem import pose
from jaxremat.trace.primal import read_primal

clock_of = lambda each: np.concatenate([[0.0], np.cumsum(each)])
CLOCK = st.lists(st.floats(0.0, 3.0), min_size=5, max_size=12).map(clock_of)
COPIES = st.lists(st.tuples(st.integers(0, 5), st.integers(1, 40)), min_size=1, max_size=6).map(sorted)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(CLOCK, COPIES)
def test_copies_out_run_one_after_another_and_as_early_as_they_can(clock, made):
    spans = Pace(clock, 10.0).copied(made)
    for (step, size), (begins, ends) in zip(made, spans, strict=True):
        assert begins >= clock[step] and ends == pytest.approx(begins + size / 10)
    for (_, before), (begins, _), (step, _) in zip(spans, spans[1:], made[1:]):
        assert begins == max(before, clock[step])


@settings(max_examples=80, deadline=None, derandomize=True)
@given(CLOCK, COPIES)
def test_fetches_begin_as_late_as_lets_all_be_done_in_time(clock, read):
    begins = Pace(clock, 10.0).fetched(read)
    ends = [begin + size / 10 for begin, (_, size) in zip(begins, read)]
    for k, (step, _) in enumerate(read):
        latest = min([clock[step], *begins[k + 1 : k + 2]])
        assert ends[k] == pytest.approx(latest)


def layered(ws, x):
    for w in ws:
        x = x + jnp.tanh(x @ w)
    return jnp.mean(x**2)


H200, ROWS = resolve_target("h200"), 16384
SHAPES = [jax.ShapeDtypeStruct((1024, 1024), jnp.float32)] * 4, jax.ShapeDtypeStruct((ROWS, 1024), jnp.float32)
PRIMAL = read_primal(layered, SHAPES, 0, False)
OWN = pose(PRIMAL, H200)


@pytest.fixture(scope="module")
def hosting():
    return Hosting.of(PRIMAL, H200, ("host",))


def test_programs_with_and_without_round_trips_share_their_equations(hosting):
    with_trips = hosting.problem.joint
    assert [with_trips.eqns[node].primitive.name for node in hosting.node] == [e.primitive.name for e in OWN.joint.eqns]
    assert hosting.trips and set(hosting.bytes_of.values()) == {ROWS * 1024 * 4}


@pytest.mark.parametrize("number", [1, 2])
def test_moved_values_leave_their_bytes_free_at_the_peak(hosting, number):
    in_order = OWN.in_order
    saved = [value for value in in_order.saved.tolist() if value in hosting.bytes_of][:number]
    moved = hosting.program(in_order, set(saved), None)
    before = replay(OWN.graph, in_order.steps).peak_bytes
    after = replay(hosting.problem.graph, moved.steps).peak_bytes
    assert before - after >= (number - 1) * ROWS * 1024 * 4
    assert not set(hosting.value[saved].tolist()) & set(moved.saved.tolist()), "they wait as what is stored"


def test_each_moved_value_is_copied_once_each_way(hosting):
    saved = [value for value in OWN.in_order.saved.tolist() if value in hosting.bytes_of]
    moved = hosting.program(OWN.in_order, set(saved), None)
    runs = np.bincount(moved.steps, minlength=hosting.problem.graph.num_nodes)
    for value in saved:
        there, back = hosting.ways[value]
        assert runs[there] == runs[back] == 1
    start = moved.backward_start
    assert {hosting.ways[v][0] for v in saved} <= set(moved.steps[:start].tolist())
    assert {hosting.ways[v][1] for v in saved} <= set(moved.steps[start:].tolist())
