"""Events of retention intervals: schedules, events and schedules again."""

import numpy as np
import pytest
from graph_oracles import first_runs_in_order, gradient_chain, replayed, staged_schedules
from hypothesis import given, settings
from small_graphs import graphs

from jaxremat.graph.replay import replay
from jaxremat.solvers.moccasin_model import event_of, improve_by_intervals, schedule_of, staged_events


def test_no_two_events_are_one():
    events = [event_of(stage, position) for stage in range(9) for position in range(stage + 1)]
    assert events == list(range(45))


@settings(max_examples=20, deadline=None, derandomize=True)
@given(graphs(most_nodes=4))
def test_staged_schedules_come_back_from_their_events(graph):
    """Those that end with a first run; of a stage, what runs again is in order."""
    order = np.arange(graph.num_nodes)
    for schedule in staged_schedules(graph):
        if schedule.index(order[-1]) == len(schedule) - 1:
            events = staged_events(np.asarray(schedule), order, graph.num_nodes)
            assert schedule_of(events, order).tolist() == list(schedule)


def test_too_many_copies_have_no_events():
    assert staged_events(np.array([0, 1, 0, 2, 0, 3]), np.arange(4), 2) is None
    assert staged_events(np.array([0, 1, 0, 2, 3]), np.arange(4), 2) == [[0, 3], [2], [5], [9]]


def test_what_runs_after_the_last_first_run_is_dropped():
    assert schedule_of(staged_events(np.array([0, 1, 2, 0]), np.arange(3), 2), np.arange(3)).tolist() == [0, 1, 2]


@settings(max_examples=25, deadline=None, derandomize=True)
@given(graphs(most_nodes=4, pinned=True))
def test_intervals_are_exact_for_one_order(graph):
    """With as many copies as stages, CP-SAT finds what enumeration finds, of schedules that end with a first run."""
    pytest.importorskip("ortools")
    listed = np.arange(graph.num_nodes)
    points = replayed(graph, (steps for steps in staged_schedules(graph) if steps[-1] == listed[-1]))
    budget = max(min(replay(graph, listed).peak_bytes - 1, max(peak for peak, _ in points)), 1)
    truth = min((cost for peak, cost in points if peak <= budget), default=None)
    improved = improve_by_intervals(graph, listed, budget, copies=5, effort=5.0, time_limit=None, seed=0)
    timeline = replay(graph, improved.schedule)
    if truth is None:
        assert not improved.optimal
    else:
        assert improved.optimal and timeline.peak_bytes <= budget and timeline.cost == pytest.approx(truth)


def test_the_given_order_is_kept_by_the_exact_part():
    pytest.importorskip("ortools")
    graph = gradient_chain(6)
    improved = improve_by_intervals(graph, np.arange(12), 6, copies=2, effort=2.0, time_limit=None, seed=0)
    assert first_runs_in_order(improved.schedule) and replay(graph, improved.schedule).peak_bytes <= 6
