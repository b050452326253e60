"""Groups of nodes: what is fused, and that groups cost and hold no less than what they stand for."""

import dataclasses

import numpy as np
import pytest
from free_order_oracle import slow_peak
from hypothesis import given, settings
from small_graphs import graphs

from jaxremat.graph.graph import Graph
from jaxremat.graph.replay import replay
from jaxremat.solvers.grouping import group_nodes


@settings(max_examples=40, deadline=None, derandomize=True)
@given(graphs(most_nodes=6, pinned=True))
def test_groups_expand_to_schedules_that_peak_no_higher(graph):
    grouping = group_nodes(graph)
    assert sorted(node for group in grouping.members for node in group) == list(range(graph.num_nodes))
    coarse = np.arange(grouping.graph.num_nodes)
    expanded = grouping.expand(coarse)
    assert slow_peak(graph, expanded) <= replay(grouping.graph, coarse).peak_bytes
    assert grouping.graph.costs.sum() == pytest.approx(graph.costs.sum())


def test_what_grows_is_fused_into_its_only_reader():
    """Node 1 makes 8 bytes of 4 and is read once; node 2 makes 2 of 8; node 0 is read twice."""
    graph = Graph.from_arrays([4, 8, 2, 4], [1, 2, 3, 4], [(0, 1), (1, 2), (0, 2), (2, 3)])
    grouping = group_nodes(graph)
    assert grouping.members == ((0,), (1, 2), (3,))
    assert grouping.graph.costs.tolist() == [1, 5, 4]
    assert grouping.graph.workspace_bytes.tolist() == [0, 8, 0], "what never leaves a group is its workspace"
    assert grouping.expand(np.asarray([0, 1, 0, 2])).tolist() == [0, 1, 2, 0, 3]


@pytest.mark.parametrize("kept", ["output", "pinned"])
def test_outputs_and_effects_stay_nodes_of_their_own(kept):
    marks = {"outputs": [0]} if kept == "output" else {}
    graph = Graph.from_arrays([4, 4], [1, 1], [(0, 1)], **marks)
    graph = dataclasses.replace(graph, pinned=np.array([kept == "pinned", False]))
    assert group_nodes(graph).members == ((0,), (1,))
