"""The jitted twin of `jaxremat.graph.replay.replay`: the same meaning in int32 quanta, for solvers that live on device.

Sizes are rounded up to quanta and budgets down, so what fits in quanta fits in bytes; where all sizes share a
divisor, or their sum is below 2**29, the quantum is exact. Arrays are padded to a power of two (the size class), so
that one compiled program serves every graph of its class.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxremat.graph.graph import Graph

_MOST_BYTES_Q = 2**29  # four times that is the range of int32
_MOST_COST_Q = 2**25  # a node may run 64 times before int32 overflows


class GraphTables(NamedTuple):
    """A graph as int32 device arrays; P is the size class, all pointers index compressed rows.

    Node `P` of a slotted schedule means that nothing runs.
    """

    num_nodes: jax.Array  # []
    cost_q: jax.Array  # [P] rounded up to cost quanta
    workspace_q: jax.Array  # [P]
    is_pinned: jax.Array  # [P] bool
    input_start: jax.Array  # [P + 1] into inputs
    inputs: jax.Array  # [4 P or more] values, grouped by the node that reads them
    value_start: jax.Array  # [P + 1] into the values, which are grouped by producer
    producer: jax.Array  # [P] of each value
    size_q: jax.Array  # [P] of each value
    is_output: jax.Array  # [P] bool, of each value
    reader_start: jax.Array  # [P + 1] into readers
    readers: jax.Array  # [4 P or more] nodes, grouped by the value that they read


class Quanta(NamedTuple):
    """The units of a table: bytes and cost per quantum."""

    unit_bytes: int
    unit_cost: float

    def budget_q(self, budget_bytes: int) -> int:
        """The largest number of quanta within a budget, at most what int32 arithmetic holds."""
        return max(min(budget_bytes // self.unit_bytes, 2 * _MOST_BYTES_Q), 1)


class Replayed(NamedTuple):
    """The replay of one slotted schedule.

    Attributes:
      live_q: [T] quanta live at each slot, resident bytes left out.
      peak_q: [] their maximum.
      cost_q: [] sum of the costs of what runs.
      is_valid: [] whether every input is produced before it is read and every node runs.
    """

    live_q: jax.Array
    peak_q: jax.Array
    cost_q: jax.Array
    is_valid: jax.Array


def size_class(graph: Graph) -> int:
    """The power of two that a graph's arrays are padded to."""
    most = max(graph.num_nodes, graph.num_values, math.ceil(len(graph.reads) / 4), 16)
    return 1 << (most - 1).bit_length()


def quanta_of(graph: Graph) -> Quanta:
    """The smallest quanta whose sums stay within int32."""
    total = int(graph.value_bytes.sum()) + int(graph.workspace_bytes.max())
    divisor = int(np.gcd.reduce(np.concatenate([graph.value_bytes, graph.workspace_bytes]))) or 1
    unit_bytes = divisor * max(1, -(-total // (divisor * _MOST_BYTES_Q)))
    return Quanta(unit_bytes, float(graph.costs.sum()) / _MOST_COST_Q or 1.0)


def tables_of(graph: Graph, quanta: Quanta) -> GraphTables:
    """Pads and quantises a graph."""
    padded = size_class(graph)
    by_value = graph.reads[np.argsort(graph.reads[:, 0], kind="stable")]

    def starts(keys: np.ndarray) -> jax.Array:
        return jnp.asarray(np.searchsorted(keys, np.arange(padded + 1)), jnp.int32)

    def pad(array: np.ndarray, size: int = padded, fill: int = 0) -> jax.Array:
        array = np.asarray(array)
        dtype = bool if array.dtype == bool else np.int32
        return jnp.asarray(np.concatenate([array, np.full(size - array.size, fill)]).astype(dtype))

    return GraphTables(
        num_nodes=jnp.int32(graph.num_nodes),
        cost_q=pad(np.ceil(graph.costs / quanta.unit_cost)),
        workspace_q=pad(-(-graph.workspace_bytes // quanta.unit_bytes)),
        is_pinned=pad(graph.pinned),
        input_start=starts(graph.reads[:, 1]),
        inputs=pad(graph.reads[:, 0], 4 * padded),
        value_start=starts(graph.producer),
        producer=pad(graph.producer),
        size_q=pad(-(-graph.value_bytes // quanta.unit_bytes)),
        is_output=pad(graph.is_output),
        reader_start=starts(by_value[:, 0]),
        readers=pad(by_value[:, 1], 4 * padded),
    )


@jax.jit
def replay_q(tables: GraphTables, node_at: jax.Array) -> Replayed:
    """Runs a slotted schedule on paper, in quanta.

    Args:
      tables: the graph.
      node_at: [T] node that runs at each slot; the size class P, or any larger number, where nothing runs.

    Returns:
      The replay; it equals `jaxremat.graph.replay.replay` at the slots where something runs.
    """
    slots = node_at.shape[0]
    padded = tables.producer.shape[0]

    def mark(index: Any, needed: Any, value: Any, new: Any) -> Any:
        """Sets one value's flag; returns the flags and the change in live quanta."""
        return needed.at[value].set(new), jnp.where(needed[value] == new, 0, jnp.where(new, 1, -1)) * tables.size_q[
            value
        ]

    def step(back: Any, carry: Any) -> Any:
        needed, live_q, live = carry
        slot = slots - 1 - back
        runs = node_at[slot] < tables.num_nodes
        node = jnp.where(runs, node_at[slot], 0)
        end = lambda start: jnp.where(runs, start[node + 1], start[node])

        def set_flag(new: Any, value_at: Any) -> Any:
            def body(index: Any, pair: Any) -> Any:
                flags, change = mark(index, pair[0], value_at(index), new)
                return flags, pair[1] + change

            return body

        made = (tables.value_start[node], end(tables.value_start))
        read = (tables.input_start[node], end(tables.input_start))
        needed, live = lax.fori_loop(*made, set_flag(True, lambda i: i), (needed, live))
        needed, live = lax.fori_loop(*read, set_flag(True, lambda i: tables.inputs[i]), (needed, live))
        live_q = live_q.at[slot].set(live + jnp.where(runs, tables.workspace_q[node], 0))
        needed, live = lax.fori_loop(*made, set_flag(False, lambda i: i), (needed, live))
        return needed, live_q, live

    at_end = tables.is_output
    start = (at_end, jnp.zeros(slots, jnp.int32), jnp.sum(jnp.where(at_end, tables.size_q, 0)))
    needed, live_q, _ = lax.fori_loop(0, slots, step, start)
    ran = jnp.zeros(padded, bool).at[node_at].set(True, mode="drop")
    is_valid = ~needed.any() & jnp.all(ran | (jnp.arange(padded) >= tables.num_nodes))
    cost_q = jnp.sum(tables.cost_q.at[node_at].get(mode="fill", fill_value=0))
    return Replayed(live_q, jnp.max(live_q), cost_q, is_valid)
