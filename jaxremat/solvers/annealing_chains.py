"""Several annealing chains on one graph, run as threads and judged by the exact replay after every round."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np

from jaxremat.graph.graph import Graph
from jaxremat.graph.replay import replay
from jaxremat.graph.replay_jax import quanta_of, size_class, tables_of
from jaxremat.solvers.annealer import Rules, walk
from jaxremat.solvers.deadline import Deadline

_SLOTS_PER_NODE = 4  # room for a few runs of each node: see fastsa
_LEAST_ROUNDS = 10  # see fastsa
ROUNDING = 1e-12  # relative: sums of costs in different orders differ by less
_MOST_MOVES_PER_ROUND = 60_000  # between two looks at the clock; a move takes about a microsecond


@dataclasses.dataclass(frozen=True)
class Cooling:
    """How one chain walks.

    Attributes:
      hot, cold: first and last temperature, relative to the objective.
      moves: moves in all, spread over the rounds.
      cost_weight: 1 for FastSA's objective; less looks for small peaks whatever they cost.
      add_share, remove_share: shares of the moves that add or remove a run; the rest shift one.
    """

    hot: float
    cold: float
    moves: int
    cost_weight: float = 1.0
    add_share: float = 0.25
    remove_share: float = 0.1


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluated:
    """A schedule with its exact peak and cost."""

    schedule: np.ndarray
    peak_bytes: int
    cost: float

    def key(self, budget_bytes: int) -> tuple[float, float, int]:
        """Smaller is better: first fit the budget, then cost, then peak."""
        return max(self.peak_bytes, budget_bytes), self.cost, self.peak_bytes


def least_cost(graph: Graph) -> float:
    """What every schedule costs at least: each node runs once."""
    return float(graph.costs.sum()) * (1 + ROUNDING)


def evaluated(graph: Graph, schedule: np.ndarray) -> Evaluated:
    """Replays a schedule."""
    timeline = replay(graph, schedule)
    return Evaluated(timeline.schedule, timeline.peak_bytes, timeline.cost)


class AnnealingChains:
    """A graph on the device, ready to be annealed; compiled once per size class.

    Args:
      graph: the graph.
      copies: how often a schedule may run one node, where the start does not already do so more often.
    """

    def __init__(self, graph: Graph, copies: int) -> None:
        self.graph = graph
        self.copies = copies
        self.quanta = quanta_of(graph)
        ordered = _with_pinned_in_order(graph) if graph.pinned.sum() > 1 else graph
        self.padded = size_class(ordered)
        self.tables = jax.device_put(tables_of(ordered, self.quanta), _host_device())

    def anneal(
        self,
        starts: Sequence[np.ndarray],
        coolings: Sequence[Cooling],
        budget_bytes: int,
        *,
        seed: int,
        deadline: Deadline,
    ) -> list[Evaluated]:
        """Anneals one chain per start, and gives the best schedule that each has seen.

        The moves are made in rounds. After each, chains are judged, and their runs are spread evenly again.

        Args:
          starts: valid schedules, one per chain.
          coolings: one per chain.
          budget_bytes: resident bytes included.
          seed: equal seeds give equal schedules, unless the deadline passes.
          deadline: checked after every round.
        """
        rounds = max(_LEAST_ROUNDS, max(cooling.moves for cooling in coolings) // _MOST_MOVES_PER_ROUND)
        current = [np.asarray(start, np.int32) for start in starts]
        best = [evaluated(self.graph, start) for start in current]
        with ThreadPoolExecutor(min(len(current), os.cpu_count() or 1)) as pool:
            for index in range(rounds):
                seeds = [(seed * 7919 + chain) * 104729 + index for chain in range(len(current))]
                walked = pool.map(self._walk, current, coolings, seeds, [(index, rounds, budget_bytes)] * len(current))
                for chain, (last, candidate) in enumerate(walked):
                    current[chain] = last
                    best[chain] = min(best[chain], candidate, key=lambda f: f.key(budget_bytes))
                leader = min(best, key=lambda f: f.key(budget_bytes))
                if deadline.passed() or self.is_least(leader, budget_bytes):
                    break
        return best

    def is_least(self, candidate: Evaluated, budget_bytes: int) -> bool:
        """Whether a schedule fits and costs what running every node once costs: no schedule costs less."""
        return candidate.peak_bytes <= budget_bytes and candidate.cost <= least_cost(self.graph)

    def _walk(
        self, start: np.ndarray, cooling: Cooling, seed: int, part: tuple[int, int, int]
    ) -> tuple[np.ndarray, Evaluated]:
        """One round of one chain: (where it ends, the best it saw)."""
        index, rounds, budget_bytes = part
        ratio = cooling.cold / cooling.hot
        rules = Rules(
            budget_q=jnp.int32(self.quanta.budget_q(budget_bytes - self.graph.resident_bytes)),
            cost_weight=jnp.float32(cooling.cost_weight),
            hot=jnp.float32(cooling.hot * ratio ** (index / rounds)),
            cold=jnp.float32(cooling.hot * ratio ** ((index + 1) / rounds)),
            add_share=jnp.float32(cooling.add_share),
            remove_share=jnp.float32(cooling.remove_share),
        )
        moves = jnp.int32(max(1, cooling.moves // rounds))
        most_runs = int(np.bincount(start).max())
        copies = max(self.copies, 1 << (most_runs - 1).bit_length())
        walked = walk(self.tables, self._spread(start), jnp.uint32(seed % 2**32), rules, moves, copies)
        return self._schedule(walked.node_at), evaluated(self.graph, self._schedule(walked.best_node_at))

    def _spread(self, schedule: np.ndarray) -> jax.Array:
        """Places a schedule evenly over the slots, as FastSA does with the original order."""
        slots = max(_SLOTS_PER_NODE * self.padded, 1 << (2 * schedule.size - 1).bit_length())
        node_at = np.full(slots, self.padded, np.int32)
        node_at[(np.arange(schedule.size) + 1) * slots // (schedule.size + 1)] = schedule
        return jax.device_put(node_at, _host_device())

    def _schedule(self, node_at: jax.Array) -> np.ndarray:
        nodes = np.asarray(node_at)
        return nodes[nodes < self.graph.num_nodes]


def _host_device() -> jax.Device:
    """The CPU, where the walk is one native loop; without a CPU backend, the default device."""
    try:
        return jax.devices("cpu")[0]
    except RuntimeError:
        return jax.devices()[0]


def _with_pinned_in_order(graph: Graph) -> Graph:
    """The graph in which each pinned node reads an empty value of the pinned node before it."""
    pinned = np.flatnonzero(graph.pinned)
    producer = np.concatenate([graph.producer, pinned[:-1]])
    order = np.argsort(producer, kind="stable")
    new_id = np.argsort(order)
    links = np.stack([graph.num_values + np.arange(pinned.size - 1), pinned[1:]], 1)
    reads = np.concatenate([graph.reads, links]) if graph.reads.size else links
    reads = np.stack([new_id[reads[:, 0]], reads[:, 1]], 1)
    return dataclasses.replace(
        graph,
        value_bytes=np.concatenate([graph.value_bytes, np.zeros(pinned.size - 1, np.int64)])[order],
        producer=producer[order].astype(np.int32),
        reads=reads[np.lexsort((reads[:, 0], reads[:, 1]))].astype(np.int32),
        is_output=np.concatenate([graph.is_output, np.zeros(pinned.size - 1, bool)])[order],
    )
