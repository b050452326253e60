"""Checkmate's staged schedule as a mixed-integer program, in a tighter form than the published one.

Stage t runs some nodes k < t again, in topological order, and then node t for the first time. Three families of
variables describe it (the paper's names in brackets):

  run[t, k]   node k runs in stage t  [R];  run[t, t] = 1
  keep[t, v]  value v is carried from stage t - 1 into stage t  [S]
  live[t, r]  in stage t, the value of read r is still held when the reader of r would run  (in place of FREE)

The paper frees a value where a product of Booleans is one and linearises the product with a constant as large as the
number of readers. Here a value is live at a reader as soon as that reader or a later one runs, or the value is kept
for the next stage: live[t, r] >= run[t, reader], >= live[t, next read], >= keep[t + 1, v]. The relaxation is much
tighter, the integer solutions are the same, and only `run` needs to be integral: for given runs the smallest `keep`
and `live` are Boolean.

Sizes are divided by their greatest common divisor. The model has O(N (N + V + R)) variables and, in the stages
that can overrun the budget, O(N^2) memory rows of O(V) entries.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import numpy as np
import scipy

from jaxremat.graph.graph import Graph

# The objective of a model sums to this much for one run of every node, so that absolute tolerances of a solver
# (about 1e-6) are far below any difference between schedules.
COST_SCALE = 1e4


@dataclasses.dataclass(frozen=True, eq=False)
class CheckmateModel:
    """minimize objective @ x subject to matrix @ x <= row_upper, lower <= x <= upper.

    Attributes:
      graph: the graph of the model; where the original has outputs, one more node reads them all at the end.
      objective: [X] costs, scaled so that one run of every node costs `COST_SCALE`.
      matrix: [rows, X] sparse.
      row_upper: [rows].
      is_memory: [rows] bool, rows that say that what is held fits in the budget.
      lower, upper: [X] bounds of the variables.
      columns: where each family of variables lies.
      has_sink: whether the last node of `graph` is not in the original.
    """

    graph: Graph
    objective: np.ndarray
    matrix: scipy.sparse.csr_array
    row_upper: np.ndarray
    is_memory: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    columns: Columns
    has_sink: bool

    @property
    def cost_unit(self) -> float:
        """Cost of the graph per unit of the objective."""
        return _cost_unit(self.graph)

    def schedule(self, runs: np.ndarray) -> np.ndarray:
        """The schedule of a Boolean matrix [N, N] of runs, stage by stage."""
        nodes = np.nonzero(np.tril(runs))[1].astype(np.int32)
        return nodes[nodes < self.graph.num_nodes - self.has_sink]

    def runs(self, x: np.ndarray) -> np.ndarray:
        """[N, N] values of run[t, k], zero above the diagonal."""
        n = self.graph.num_nodes
        matrix = np.zeros((n, n))
        matrix[np.tril_indices(n)] = x[: self.columns.num_runs]
        return matrix

    def keeps(self, x: np.ndarray) -> np.ndarray:
        """[N + 1, V] values of keep[t, v], zero where value v cannot have been produced before stage t."""
        matrix = np.zeros((self.graph.num_nodes + 1, self.graph.num_values))
        for stage in range(self.graph.num_nodes + 1):
            kept = self.columns.keep(stage, np.arange(self.columns.values_before[stage]))
            matrix[stage, : kept.size] = x[kept]
        return matrix


class Columns:
    """Columns of the variables, and what each stage can see: a prefix of the values and a prefix of the reads."""

    def __init__(self, graph: Graph) -> None:
        n = graph.num_nodes
        self.read_value, self.reader = graph.reads.astype(np.int64).reshape(-1, 2).T
        self.values_before = np.searchsorted(graph.producer, np.arange(n + 1))
        self.reads_through = np.searchsorted(self.reader, np.arange(n), side="right")
        self.num_runs = n * (n + 1) // 2
        self._keep_start = self.num_runs + np.concatenate([[0], np.cumsum(self.values_before)])
        self._live_start = self._keep_start[-1] + np.concatenate([[0], np.cumsum(self.reads_through)])
        self.num_variables = int(self._live_start[-1])
        self.next_read = _next_reads(self.read_value)

    def run(self, stage: int, node: int | np.ndarray) -> Any:
        return stage * (stage + 1) // 2 + node

    def keep(self, stage: int, value: int | np.ndarray) -> Any:
        return self._keep_start[stage] + value

    def live(self, stage: int, read: int | np.ndarray) -> Any:
        return self._live_start[stage] + read

    def live_or_kept(self, stage: int, read: np.ndarray, value: np.ndarray) -> np.ndarray:
        """What says that a value is held at a read: the read itself or, past the stage's last, keep[stage + 1]."""
        within = read < self.reads_through[stage]
        return np.where(within, self.live(stage, read), self.keep(stage + 1, value))


def build_model(graph: Graph, budget_bytes: int, dearest_rerun: float = math.inf) -> CheckmateModel:
    """Builds the program for one graph and budget.

    Args:
      graph: the graph; pinned nodes run once.
      budget_bytes: largest peak, resident bytes included.
      dearest_rerun: nodes that cost more than this run once.
    """
    full, has_sink = _with_sink(graph)
    columns, rows = Columns(full), _Rows()
    once = full.pinned | (full.costs > dearest_rerun)
    memory = _Memory(*_scaled_sizes(full, budget_bytes), _reads_at_or_after(full, columns))
    objective, lower, upper = (
        np.zeros(columns.num_variables),
        np.zeros(columns.num_variables),
        np.ones(columns.num_variables),
    )
    for stage in range(full.num_nodes):
        earlier = np.arange(stage)
        objective[columns.run(stage, np.arange(stage + 1))] = full.costs[: stage + 1] / _cost_unit(full)
        lower[columns.run(stage, stage)] = 1
        upper[columns.run(stage, earlier[once[:stage]])] = 0
        _add_dependencies(rows, full, columns, stage)
        _add_memory(rows, full, columns, stage, np.append(earlier[~once[:stage]], stage), memory)
    upper[columns.keep(full.num_nodes, np.arange(full.num_values))] = 0
    matrix, row_upper, is_memory = rows.assembled(columns.num_variables)
    return CheckmateModel(full, objective, matrix, row_upper, is_memory, lower, upper, columns, has_sink)


def memory_entries(graph: Graph, budget_bytes: int, dearest_rerun: float = math.inf) -> int:
    """At most so many entries do the memory rows of a model have; they decide whether it can be solved at all."""
    made_bytes = np.cumsum(graph.node_bytes) + graph.workspace_bytes.max() + graph.resident_bytes
    nodes = np.cumsum(~graph.pinned & (graph.costs <= dearest_rerun)) + 1
    values = np.searchsorted(graph.producer, np.arange(graph.num_nodes), side="right")
    return int((nodes * values)[made_bytes > budget_bytes].sum())


def peak_model(model: CheckmateModel) -> CheckmateModel:
    """The same schedules, free to overrun the budget: one more variable, the peak in size units, is the objective."""
    peak = scipy.sparse.csr_array(-model.is_memory.astype(float)[:, None])
    room = model.row_upper[model.is_memory].max(initial=0.0)
    return dataclasses.replace(
        model,
        objective=np.append(np.zeros(model.objective.size), 1.0),
        matrix=scipy.sparse.hstack([model.matrix, peak]).tocsr(),
        row_upper=np.where(model.is_memory, 0.0, model.row_upper),
        lower=np.append(model.lower, room),
        upper=np.append(model.upper, np.inf),
    )


class _Rows:
    """Rows `entries <= bound`, collected in coordinates."""

    def __init__(self) -> None:
        self.rows: list[np.ndarray] = []
        self.columns: list[np.ndarray] = []
        self.entries: list[np.ndarray] = []
        self.bounds: list[np.ndarray] = []
        self.memory: list[np.ndarray] = []
        self.count = 0

    def add(self, columns: list[np.ndarray], entries: list[float], bound: float) -> None:
        """Adds one row per position of the arrays in `columns`; `entries` and `bound` are common to all."""
        height = len(columns[0])
        for column, entry in zip(columns, entries):
            self.rows.append(self.count + np.arange(height))
            self.columns.append(np.asarray(column))
            self.entries.append(np.full(height, float(entry)))
        self._close(height, bound, is_memory=False)

    def add_memory(self, height: int, parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]], bound: float) -> None:
        """Adds `height` rows given as (row, column, entry) triples; repeated coordinates add up."""
        for row, column, entry in parts:
            self.rows.append(self.count + row)
            self.columns.append(column)
            self.entries.append(entry)
        self._close(height, bound, is_memory=True)

    def _close(self, height: int, bound: float, is_memory: bool) -> None:
        self.bounds.append(np.full(height, float(bound)))
        self.memory.append(np.full(height, is_memory))
        self.count += height

    def assembled(self, num_variables: int) -> tuple[scipy.sparse.csr_array, np.ndarray, np.ndarray]:
        coordinates = (np.concatenate(self.rows), np.concatenate(self.columns))
        matrix = scipy.sparse.coo_array((np.concatenate(self.entries), coordinates), (self.count, num_variables))
        return matrix.tocsr(), np.concatenate(self.bounds), np.concatenate(self.memory)


def _add_dependencies(rows: _Rows, graph: Graph, columns: Columns, stage: int) -> None:
    """Rows that tie runs, kept values and live values of one stage; at its end, of the next."""
    read = np.arange(columns.reads_through[stage])
    value, reader = columns.read_value[read], columns.reader[read]
    maker = graph.producer[value].astype(np.int64)
    run, keep = columns.run(stage, reader), columns.keep(stage, value)
    rows.add([run, columns.run(stage, maker), keep], [1, -1, -1], 0)
    rows.add([run, columns.live(stage, read)], [1, -1], 0)
    following = columns.live_or_kept(stage, columns.next_read[read], value)
    rows.add([following, columns.live(stage, read)], [1, -1], 0)
    carried = np.arange(columns.values_before[stage])
    made = columns.run(stage, graph.producer[carried].astype(np.int64))
    rows.add([columns.keep(stage + 1, carried), made, columns.keep(stage, carried)], [1, -1, -1], 0)
    rows.add([made, columns.keep(stage, carried)], [1, 1], 1)


class _Memory(NamedTuple):
    """What the memory rows of all stages read.

    Attributes:
      sizes: [V] of values, [N] of workspaces, in units of size.
      room: what is held together may take.
      reads_at_or_after: [N + 1, V] the first read of each value by a node or a later one.
    """

    sizes: tuple[np.ndarray, np.ndarray]
    room: float
    reads_at_or_after: np.ndarray


def _add_memory(rows: _Rows, graph: Graph, columns: Columns, stage: int, nodes: np.ndarray, memory: _Memory) -> None:
    """One row for each node that may run in a stage: all that is held while it runs fits in the room."""
    (value_size, workspace_size), room, reads_at_or_after = memory
    before, through = int(columns.values_before[stage]), int(columns.values_before[stage + 1])
    if value_size[:through].sum() + workspace_size[: stage + 1].max() <= room:
        return
    maker = graph.producer[:through].astype(np.int64)
    value = np.arange(through)
    node, sized = nodes[:, None], (value_size[:through] > 0)[None]
    older, own, newer = maker < node, maker == node, maker > node
    first = reads_at_or_after[nodes, :through]
    held = columns.live_or_kept(stage, first, value[None])
    parts = [
        _picked(older & sized, held, value_size[:through]),
        _picked(own & sized, np.broadcast_to(columns.run(stage, node), held.shape), value_size[:through]),
    ]
    carried = (own | newer) & sized
    carried[:, before:] = False
    parts.append(_picked(carried, np.broadcast_to(columns.keep(stage, value)[None], held.shape), value_size[:through]))
    busy = np.flatnonzero(workspace_size[nodes] > 0)
    parts.append((busy, columns.run(stage, nodes[busy]), workspace_size[nodes[busy]]))
    rows.add_memory(nodes.size, parts, room)


def _picked(mask: np.ndarray, columns: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    row, value = np.nonzero(mask)
    return row, columns[row, value], sizes[value]


def _with_sink(graph: Graph) -> tuple[Graph, bool]:
    """The graph with a last, free node that reads all outputs, so that being live to the end is being read by it."""
    outputs = np.flatnonzero(graph.is_output)
    if not outputs.size:
        return graph, False
    n = graph.num_nodes
    sink_reads = np.stack([outputs, np.full(outputs.size, n)], 1).astype(np.int32)
    extended = Graph(
        costs=np.append(graph.costs, 0.0),
        workspace_bytes=np.append(graph.workspace_bytes, 0),
        value_bytes=graph.value_bytes,
        producer=graph.producer,
        reads=np.concatenate([graph.reads.reshape(-1, 2), sink_reads]),
        is_output=np.zeros(graph.num_values, bool),
        resident_bytes=graph.resident_bytes,
        backward=np.append(graph.backward, False),
        pinned=np.append(graph.pinned, True),
    )
    return extended, True


def _cost_unit(graph: Graph) -> float:
    total = float(graph.costs.sum())
    return total / COST_SCALE if total > 0 else 1.0


def _scaled_sizes(graph: Graph, budget_bytes: int) -> tuple[tuple[np.ndarray, np.ndarray], float]:
    """(value sizes, workspace sizes) and the room for them, in units of the greatest common divisor."""
    unit = max(functools.reduce(math.gcd, graph.value_bytes.tolist() + graph.workspace_bytes.tolist(), 0), 1)
    room = (budget_bytes - graph.resident_bytes) // unit
    return (graph.value_bytes / unit, graph.workspace_bytes / unit), float(room)


def _next_reads(read_value: np.ndarray) -> np.ndarray:
    """[R] for each read, the next read of the same value, or R."""
    order = np.lexsort((np.arange(read_value.size), read_value))
    following = np.full(read_value.size, read_value.size, np.int64)
    same = read_value[order][1:] == read_value[order][:-1]
    following[order[:-1][same]] = order[1:][same]
    return following


def _reads_at_or_after(graph: Graph, columns: Columns) -> np.ndarray:
    """[N, V] the first read of each value by a node k or a later one, or R."""
    num_reads = columns.reader.size
    table = np.full((graph.num_nodes + 1, graph.num_values), num_reads, np.int64)
    for node in range(graph.num_nodes - 1, -1, -1):
        table[node] = table[node + 1]
        start = columns.reads_through[node - 1] if node else 0
        reads = np.arange(start, columns.reads_through[node])
        table[node, columns.read_value[reads]] = reads
    return table[:-1]
