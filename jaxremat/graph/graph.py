"""Problems as frozen arrays: a `Graph` of computations, or Rotor's heterogeneous `Chain`.

A graph has N nodes (computations) and V values. A node reads values and produces values; most nodes produce one.
Sizes are exact Python-sized integers (int64), so graphs beyond 2**31 bytes need no scaling.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxremat.base.errors import GraphError
from jaxremat.base.shapes import Bool, Float64, Int64, Integer
from jaxremat.graph.scheduled import first_backward


@dataclasses.dataclass(frozen=True, eq=False)
class Graph:
    """A directed acyclic graph of computations, listed in an executable order.

    Attributes:
      costs: what running each node once costs, in seconds or any other unit.
      workspace_bytes: bytes that a node needs only while it runs, beyond what it reads and produces.
      value_bytes: bytes of each value.
      producer: the node that produces each value, non-decreasing.
      reads: pairs (value, node), sorted by node and then by value, without repeats: node reads value.
      is_output: values that stay live to the end.
      resident_bytes: bytes that are live throughout (arguments, parameters).
      backward: nodes that depend on a cotangent; all False where the graph is not a gradient program.
      pinned: nodes that must run exactly once and in the given order among themselves (effects).
      names: one name per node for people to read, or empty.
      rerun_surcharge: what running each node again is taken to cost beyond its cost: more than 0 where that is to be
        avoided, infinite where it must not be.
      keep_costs: what keeping each value from the forward to the backward costs, beside its bytes, in the unit of the
        costs: a copy to other memory, say. Nothing by default, and no part of the replay.
    """

    costs: Float64[np.ndarray, " nodes"]
    workspace_bytes: Int64[np.ndarray, " nodes"]
    value_bytes: Int64[np.ndarray, " values"]
    producer: Integer[np.ndarray, " values"]
    reads: Integer[np.ndarray, "reads 2"]
    is_output: Bool[np.ndarray, " values"]
    resident_bytes: int = 0
    backward: Bool[np.ndarray, " nodes"] = dataclasses.field(default_factory=lambda: np.zeros(0, bool))
    pinned: Bool[np.ndarray, " nodes"] = dataclasses.field(default_factory=lambda: np.zeros(0, bool))
    names: tuple[str, ...] = ()
    rerun_surcharge: Float64[np.ndarray, " nodes"] = dataclasses.field(default_factory=lambda: np.zeros(0))
    keep_costs: Float64[np.ndarray, " values"] = dataclasses.field(default_factory=lambda: np.zeros(0))

    def __post_init__(self) -> None:
        for name in ("backward", "pinned"):
            if getattr(self, name).size == 0:
                object.__setattr__(self, name, np.zeros(self.num_nodes, bool))
        if self.rerun_surcharge.size == 0:
            object.__setattr__(self, "rerun_surcharge", np.zeros(self.num_nodes))
        if self.keep_costs.size == 0:
            object.__setattr__(self, "keep_costs", np.zeros(self.num_values))
        self.validate()
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, np.ndarray):
                value.setflags(write=False)

    @staticmethod
    def from_arrays(
        sizes: Sequence[int],
        costs: Sequence[float],
        edges: Sequence[tuple[int, int]],
        outputs: Sequence[int] = (),
        resident_bytes: int = 0,
        names: Sequence[str] = (),
    ) -> Graph:
        """Builds a graph in which node i produces one value of `sizes[i]` bytes.

        Args:
          sizes: [N] non-negative integers, bytes.
          costs: [N] non-negative numbers, any unit.
          edges: pairs (u, v): node v reads the value of node u. Nodes are listed in topological order: u < v.
          outputs: nodes whose value must be live at the end.
          resident_bytes: bytes live throughout.
          names: one name per node, optional.

        Raises:
          GraphError: for unequal lengths, negative or fractional sizes, edges out of range, a cycle, or an order that
            is not topological.
        """
        sizes_array = _integers(sizes, "sizes")
        costs_array = np.array(costs, np.float64).reshape(-1)
        n = sizes_array.size
        if costs_array.size != n:
            raise GraphError(f"{n} sizes but {costs_array.size} costs: give one of each per node")
        edges_array = _integers(edges, "edges").reshape(-1, 2)
        if edges_array.size and not (edges_array.min() >= 0 and edges_array.max() < n):
            bad = edges_array[((edges_array < 0) | (edges_array >= n)).any(1)][0]
            raise GraphError(f"edge {tuple(map(int, bad))} names a node outside 0..{n - 1}")
        outputs_array = _integers(outputs, "outputs")
        if outputs_array.size and not (outputs_array.min() >= 0 and outputs_array.max() < n):
            raise GraphError(f"outputs {sorted(map(int, outputs_array))} must lie in 0..{n - 1}")
        if np.any(edges_array[:, 0] >= edges_array[:, 1]):
            _refuse_unordered(edges_array, n)
        is_output = np.zeros(n, bool)
        is_output[outputs_array] = True
        return Graph(
            costs=costs_array,
            workspace_bytes=np.zeros(n, np.int64),
            value_bytes=sizes_array,
            producer=np.arange(n, dtype=np.int32),
            reads=_sorted_reads(edges_array),
            is_output=is_output,
            resident_bytes=int(resident_bytes),
            names=tuple(names),
        )

    def validate(self) -> None:
        """Raises GraphError where an invariant of the fields does not hold."""
        n, v = self.num_nodes, self.num_values
        if n == 0:
            raise GraphError("a graph needs at least one node")
        sizes = dict(workspace_bytes=n, producer=v, is_output=v, backward=n, pinned=n, rerun_surcharge=n)
        for field, size in sizes.items():
            if getattr(self, field).shape != (size,):
                raise GraphError(f"{field} has shape {getattr(self, field).shape}, expected ({size},)")
        if self.names and len(self.names) != n:
            raise GraphError(f"{len(self.names)} names for {n} nodes")
        for field in ("costs", "workspace_bytes", "value_bytes"):
            array = getattr(self, field)
            if array.size and not (np.isfinite(array).all() and array.min() >= 0):
                raise GraphError(f"{field} must be finite and non-negative; the smallest is {array.min()}")
        if not np.all(self.rerun_surcharge >= 0):
            raise GraphError(f"rerun_surcharge must be non-negative; the smallest is {self.rerun_surcharge.min()}")
        if self.resident_bytes < 0:
            raise GraphError(f"resident_bytes is {self.resident_bytes}; it must not be negative")
        if v and (np.any(np.diff(self.producer) < 0) or self.producer[0] < 0 or self.producer[-1] >= n):
            raise GraphError("producer must be non-decreasing and name nodes of the graph")
        if self.reads.size:
            values, nodes = self.reads.T
            if values.min() < 0 or values.max() >= v or nodes.min() < 0 or nodes.max() >= n:
                raise GraphError("reads name values or nodes outside the graph")
            late = self.producer[values] >= nodes
            if late.any():
                value, node = map(int, self.reads[late][0])
                raise GraphError(f"node {node} reads value {value} before node {int(self.producer[value])} produces it")

    @property
    def num_nodes(self) -> int:
        return self.costs.size

    @property
    def num_values(self) -> int:
        return self.value_bytes.size

    @property
    def backward_start(self) -> int:
        """The first backward node; the number of nodes where there is none."""
        return first_backward(self.backward, np.arange(self.num_nodes))

    @functools.cached_property
    def edges(self) -> np.ndarray:
        """[E, 2] int32 pairs (u, v), sorted and without repeats: node v reads a value of node u."""
        if not self.reads.size:
            return np.zeros((0, 2), np.int32)
        return np.unique(np.stack([self.producer[self.reads[:, 0]], self.reads[:, 1]], 1), axis=0).astype(np.int32)

    @functools.cached_property
    def rerun_costs(self) -> np.ndarray:
        """[N] what running each node again is taken to cost; infinite where it must not run again."""
        return np.where(self.pinned, np.inf, self.costs + self.rerun_surcharge)

    @functools.cached_property
    def mean_price(self) -> float:
        """What running everything costs per byte that it makes."""
        return float(self.costs.sum() / max(int(self.value_bytes.sum()), 1))

    @functools.cached_property
    def is_dead_end(self) -> np.ndarray:
        """[N] bool: nodes of which nobody reads a value, and whose values are no outputs."""
        dead_end = np.ones(self.num_nodes, bool)
        dead_end[self.producer[self.is_output]] = False
        dead_end[self.producer[self.reads[:, 0]]] = False
        return dead_end

    @functools.cached_property
    def node_bytes(self) -> np.ndarray:
        """[N] int64: bytes of all the values that each node produces."""
        total = np.zeros(self.num_nodes, np.int64)
        np.add.at(total, self.producer, self.value_bytes)
        return total

    @functools.cached_property
    def least_bytes(self) -> int:
        """What no schedule takes less than: the most that a node needs, what it reads and produces included."""
        read = np.bincount(self.reads[:, 1], self.value_bytes[self.reads[:, 0]], self.num_nodes).astype(np.int64)
        return self.resident_bytes + int((read + self.node_bytes + self.workspace_bytes).max(initial=0))

    @functools.cached_property
    def value_start(self) -> np.ndarray:
        """[N + 1] the first value of each node: node i produces values value_start[i] .. value_start[i + 1] - 1."""
        return np.searchsorted(self.producer, np.arange(self.num_nodes + 1))

    @functools.cached_property
    def read_start(self) -> np.ndarray:
        """[N + 1] the first row of `reads` of each node."""
        return np.searchsorted(self.reads[:, 1], np.arange(self.num_nodes + 1))

    @functools.cached_property
    def values_read(self) -> tuple[tuple[int, ...], ...]:
        """For each node, the values that it reads."""
        return _rows(self.reads[:, 0], self.read_start)

    @functools.cached_property
    def nodes_read(self) -> tuple[tuple[int, ...], ...]:
        """For each node, the node that makes each of the values that it reads."""
        return _rows(self.producer[self.reads[:, 0]], self.read_start)

    @functools.cached_property
    def readers(self) -> tuple[tuple[int, ...], ...]:
        """For each value, the nodes that read it."""
        return _group(self.reads[:, 0], self.reads[:, 1], self.num_values)

    @functools.cached_property
    def values_of(self) -> tuple[tuple[int, ...], ...]:
        """For each node, the values that it produces."""
        return _rows(np.arange(self.num_values), self.value_start)

    @functools.cached_property
    def first_backward_read(self) -> np.ndarray:
        """[V] the first backward node that reads each value; num_nodes where none does."""
        first = np.full(self.num_values, self.num_nodes, np.int64)
        value, node = self.reads[self.backward[self.reads[:, 1]]].T
        np.minimum.at(first, value, node)
        return first

    @functools.cached_property
    def forward_reads(self) -> np.ndarray:
        """[N] how many reads of its values by forward nodes each node has."""
        early = ~self.backward[self.reads[:, 1]]
        return np.bincount(self.producer[self.reads[early, 0]], minlength=self.num_nodes)


@dataclasses.dataclass(frozen=True, eq=False)
class Chain:
    """Rotor's heterogeneous chain of stages 1..L (arrays are indexed from 0).

    Attributes:
      forward_seconds, backward_seconds: time of each stage's forward and backward.
      output_bytes: the output of each stage.
      saved_bytes: all that a stage keeps for its backward, its output included.
      gradient_bytes: the gradient of each stage's output.
      forward_overhead_bytes, backward_overhead_bytes: transients beyond inputs and outputs.
      input_bytes: the input of the first stage, held throughout.
    """

    forward_seconds: Float64[np.ndarray, " stages"]
    backward_seconds: Float64[np.ndarray, " stages"]
    output_bytes: Int64[np.ndarray, " stages"]
    saved_bytes: Int64[np.ndarray, " stages"]
    gradient_bytes: Int64[np.ndarray, " stages"]
    forward_overhead_bytes: Int64[np.ndarray, " stages"]
    backward_overhead_bytes: Int64[np.ndarray, " stages"]
    input_bytes: int

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name.endswith("_seconds"):
                value = np.asarray(value, np.float64).reshape(-1)
            elif field.name == "input_bytes":
                value = int(value)
            else:
                value = _integers(value, field.name)
            object.__setattr__(self, field.name, value)
        self.validate()

    def validate(self) -> None:
        """Raises GraphError where lengths differ or a number is negative."""
        length = self.num_stages
        if length == 0:
            raise GraphError("a chain needs at least one stage")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, np.ndarray):
                if value.shape != (length,):
                    raise GraphError(f"{field.name} has {value.size} entries for {length} stages")
                if not np.isfinite(value).all() or value.min() < 0:
                    raise GraphError(f"{field.name} must be finite and non-negative; the smallest is {value.min()}")
        if self.input_bytes < 0:
            raise GraphError(f"input_bytes is {self.input_bytes}; it must not be negative")
        if np.any(self.saved_bytes < self.output_bytes):
            stage = int(np.argmax(self.saved_bytes < self.output_bytes)) + 1
            raise GraphError(f"saved_bytes of stage {stage} is below its output_bytes; it includes the output")

    @property
    def num_stages(self) -> int:
        return self.forward_seconds.size


def _integers(values: Any, name: str) -> np.ndarray:
    array = np.asarray(values)
    if array.size == 0:
        return np.zeros(0, np.int64)
    if not np.issubdtype(array.dtype, np.integer):
        rounded = np.asarray(array, np.float64)
        if not np.isfinite(rounded).all() or np.any(rounded != np.floor(rounded)):
            raise GraphError(f"{name} must be integers, got dtype {array.dtype}")
    return array.astype(np.int64).reshape(-1)


def _sorted_reads(edges: np.ndarray) -> np.ndarray:
    if not edges.size:
        return np.zeros((0, 2), np.int32)
    unique = np.unique(edges, axis=0)
    return unique[np.lexsort((unique[:, 0], unique[:, 1]))].astype(np.int32)


def _refuse_unordered(edges: np.ndarray, n: int) -> None:
    """Names the cycle, or says that the nodes are not listed in topological order."""
    waiting = np.zeros(n, np.int64)
    np.add.at(waiting, edges[:, 1], 1)
    children = _group(edges[:, 0], edges[:, 1], n)
    ready = [int(v) for v in np.flatnonzero(waiting == 0)]
    done = 0
    while ready:
        node = ready.pop()
        done += 1
        for child in children[node]:
            waiting[child] -= 1
            if not waiting[child]:
                ready.append(child)
    if done < n:
        raise GraphError(f"the graph has a cycle through node {int(np.flatnonzero(waiting > 0)[0])}")
    u, v = map(int, edges[edges[:, 0] >= edges[:, 1]][0])
    raise GraphError(f"edge ({u}, {v}) runs backwards: list nodes so that every edge goes from a lower to a higher id")


def _rows(entries: np.ndarray, start: np.ndarray) -> tuple[tuple[int, ...], ...]:
    """Rows of entries that lie one after another, and begin at some places."""
    flat, bounds = entries.tolist(), start.tolist()
    return tuple(tuple(flat[a:b]) for a, b in itertools.pairwise(bounds))


def _group(keys: np.ndarray, values: np.ndarray, n: int) -> tuple[tuple[int, ...], ...]:
    groups: list[list[int]] = [[] for _ in range(n)]
    for key, value in zip(keys.tolist(), values.tolist()):
        groups[key].append(value)
    return tuple(map(tuple, groups))
