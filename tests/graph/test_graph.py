"""Graphs and chains that are malformed are refused with the place; well-formed ones know who reads what."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from small_graphs import gradient_chain, graphs

from jaxremat.base.errors import GraphError
from jaxremat.graph.graph import Chain, Graph

GRAPH = gradient_chain(3)

BROKEN = {
    "producer has shape": {"producer": np.arange(5)},
    "is_output has shape": {"is_output": np.zeros(7, bool)},
    "workspace_bytes has shape": {"workspace_bytes": np.zeros((6, 1), np.int64)},
    "backward has shape": {"backward": np.ones(2, bool)},
    "pinned has shape": {"pinned": np.ones(7, bool)},
    "5 names for 6 nodes": {"names": tuple("abcde")},
    "costs must be finite and non-negative; the smallest is -1": {"costs": np.array([1, 1, -1.0, 1, 1, 1])},
    "costs must be finite": {"costs": np.array([1, 1, np.nan, 1, 1, 1])},
    "value_bytes must be finite and non-negative": {"value_bytes": np.array([1, 2, 3, -4, 5, 6])},
    "workspace_bytes must be finite": {"workspace_bytes": np.array([0, 0, 0, -1, 0, 0])},
    "resident_bytes is -1": {"resident_bytes": -1},
    "producer must be non-decreasing": {"producer": np.array([0, 2, 1, 3, 4, 5])},
    "name nodes of the graph": {"producer": np.array([0, 1, 2, 3, 4, 6])},
    "reads name values or nodes outside": {"reads": np.array([[6, 5]])},
    "reads name values or nodes outside the graph": {"reads": np.array([[0, 6]])},
    "node 2 reads value 3 before node 3 produces it": {"reads": np.array([[3, 2]])},
    "node 3 reads value 3 before": {"reads": np.array([[3, 3]])},
}


@pytest.mark.parametrize("told", BROKEN)
def test_broken_fields_are_named(told):
    with pytest.raises(GraphError, match=told):
        dataclasses.replace(GRAPH, **BROKEN[told])


def test_an_empty_graph_is_refused():
    with pytest.raises(GraphError, match="at least one node"):
        Graph.from_arrays([], [], [])


ARRAYS = {
    "3 sizes but 2 costs": dict(sizes=[1, 1, 1], costs=[1, 1], edges=[]),
    "sizes must be integers": dict(sizes=[1, 1.5], costs=[1, 1], edges=[]),
    "sizes must be integers, got dtype float64": dict(sizes=[1, np.inf], costs=[1, 1], edges=[]),
    r"edge \(0, 2\) names a node outside 0..1": dict(sizes=[1, 1], costs=[1, 1], edges=[(0, 1), (0, 2)]),
    r"edge \(-1, 1\) names a node outside": dict(sizes=[1, 1], costs=[1, 1], edges=[(-1, 1)]),
    r"outputs \[0, 2\] must lie in 0..1": dict(sizes=[1, 1], costs=[1, 1], edges=[], outputs=[2, 0]),
    "a cycle through node 1": dict(sizes=[1] * 3, costs=[1] * 3, edges=[(0, 1), (1, 2), (2, 1)]),
    "a cycle through node 0": dict(sizes=[1], costs=[1], edges=[(0, 0)]),
    r"edge \(2, 1\) runs backwards": dict(sizes=[1] * 3, costs=[1] * 3, edges=[(0, 2), (2, 1)]),
    "sizes|value_bytes": dict(sizes=[1, -1], costs=[1, 1], edges=[]),
}


@pytest.mark.parametrize("told", ARRAYS)
def test_broken_arrays_are_named(told):
    with pytest.raises(GraphError, match=told):
        Graph.from_arrays(**ARRAYS[told])


def test_whole_numbers_may_be_floats_and_edges_may_repeat():
    graph = Graph.from_arrays([4.0, 2.0], [0.5, 1], [(0, 1), (0, 1)], outputs=[1], names=["a", "b"])
    assert graph.value_bytes.dtype == np.int64 and graph.reads.tolist() == [[0, 1]] == graph.edges.tolist()
    assert not graph.backward.any() and not graph.pinned.any() and graph.names == ("a", "b")


def test_graphs_are_frozen():
    graph = Graph.from_arrays([4, 2], [1, 1], [(0, 1)])
    for field in dataclasses.fields(graph):
        value = getattr(graph, field.name)
        if isinstance(value, np.ndarray):
            assert not value.flags.writeable, field.name
    with pytest.raises(dataclasses.FrozenInstanceError):
        graph.resident_bytes = 3


@settings(max_examples=80, deadline=None, derandomize=True)
@given(graphs())
def test_who_reads_and_makes_what(graph):
    reads = [tuple(pair) for pair in graph.reads.tolist()]
    for node in range(graph.num_nodes):
        assert sorted(graph.values_read[node]) == sorted(v for v, reader in reads if reader == node)
        assert graph.values_of[node] == tuple(np.flatnonzero(graph.producer == node).tolist())
        assert graph.node_bytes[node] == sum(int(graph.value_bytes[v]) for v in graph.values_of[node])
    for value in range(graph.num_values):
        assert sorted(graph.readers[value]) == sorted(node for v, node in reads if v == value)
    edges = {(int(graph.producer[v]), node) for v, node in reads}
    assert [tuple(edge) for edge in graph.edges.tolist()] == sorted(edges)


STAGES = dict(
    forward_seconds=[1, 2],
    backward_seconds=[2, 3],
    output_bytes=[4, 4],
    saved_bytes=[8, 8],
    gradient_bytes=[4, 4],
    forward_overhead_bytes=[0, 1],
    backward_overhead_bytes=[0, 1],
    input_bytes=4,
)
BROKEN_CHAINS = {
    "at least one stage": {name: [] if name != "input_bytes" else 4 for name in STAGES},
    "backward_seconds has 1 entries for 2 stages": {"backward_seconds": [1]},
    "output_bytes must be integers": {"output_bytes": [0.5, 4]},
    "gradient_bytes must be finite and non-negative": {"gradient_bytes": [-1, 4]},
    "forward_seconds must be finite": {"forward_seconds": [np.nan, 1]},
    "input_bytes is -4": {"input_bytes": -4},
    "saved_bytes of stage 2 is below its output_bytes": {"saved_bytes": [8, 3]},
}


@pytest.mark.parametrize("told", BROKEN_CHAINS)
def test_broken_chains_are_named(told):
    assert Chain(**STAGES).num_stages == 2
    with pytest.raises(GraphError, match=told):
        Chain(**{**STAGES, **BROKEN_CHAINS[told]})
