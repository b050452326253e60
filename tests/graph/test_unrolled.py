"""A schedule as a program: its steps in order cost, hold and read what the schedule does."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from small_graphs import graphs, schedules

from jaxremat.graph.replay import replay
from jaxremat.graph.unrolled import unrolled


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.data())
def test_the_steps_in_order_replay_as_the_schedule(data):
    graph = data.draw(graphs())
    steps = np.asarray(data.draw(schedules(graph)))
    program = unrolled(graph, steps, steps.size // 2)
    told, again = replay(graph, steps), replay(program, np.arange(steps.size))
    assert again.live_bytes.tolist() == told.live_bytes.tolist() and again.cost == told.cost
    assert program.backward.tolist() == (np.arange(steps.size) >= steps.size // 2).tolist()
