"""The record of a scheduled program: where its backward begins, what is saved, and its way through JSON."""

import dataclasses
import json

import numpy as np
import pytest
from small_graphs import random_joint_graph

from jaxremat.graph.graph import Graph
from jaxremat.graph.replay import replay
from jaxremat.graph.scheduled import ScheduledProgram, in_order, schedule_program
from jaxremat.solvers.mincut.assemble import assemble_parts
from jaxremat.solvers.mincut.structure import Structure


@pytest.mark.parametrize(
    "steps,start",
    [
        ([0, 1, 2, 3, 4, 5], 3),
        ([0, 1, 2, 0, 3, 1, 4, 5], 3),
        ([0, 1, 2, 0, 1, 3, 4, 5], 3),
        ([0, 1, 0, 2, 3, 0, 4, 5], 4),
        ([0, 1, 2], 3),
    ],
    ids=["in order", "a repeat right before", "two repeats", "a repeat in the forward", "no backward"],
)
def test_the_backward_begins_with_its_first_step_or_the_repeats_before_it(steps, start):
    graph = Graph.from_arrays([1] * 6, [1] * 6, [])
    graph = dataclasses.replace(graph, backward=np.arange(6) >= 3)
    assert schedule_program(graph, steps).backward_start == start


@pytest.mark.parametrize("seed", range(12))
def test_what_is_saved_is_what_lives_across_the_boundary_in_the_replay(seed):
    graph = random_joint_graph(np.random.default_rng(seed))
    rng = np.random.default_rng(seed)
    kept = Structure(graph).needed & (rng.random(graph.num_values) < 0.5)
    schedule, start = assemble_parts(graph, kept)
    program = schedule_program(graph, schedule, backward_start=start)
    value, first, last = replay(graph, schedule).spans.T
    crossing = set(value[(first < start) & (last >= start)].tolist())
    assert set(program.saved.tolist()) <= crossing
    assert crossing - set(program.saved.tolist()) <= set(np.flatnonzero(graph.is_output).tolist())


def test_the_program_as_it_stands_repeats_nothing_and_has_no_barrier():
    graph = random_joint_graph(np.random.default_rng(3))
    program = in_order(graph)
    assert program.is_in_order and not program.barriers
    assert program.backward_start == int(graph.backward.argmax())


def test_a_record_survives_json():
    graph = random_joint_graph(np.random.default_rng(5))
    schedule, start = assemble_parts(graph, np.zeros(graph.num_values, bool))
    program = schedule_program(graph, schedule, backward_start=start, barrier_scope="sources")
    again = ScheduledProgram.from_json(json.loads(json.dumps(program.to_json())))
    assert again.to_json() == program.to_json() and again.barrier_scope == "sources"
    assert np.array_equal(again.steps, schedule) and again.backward_start == start
