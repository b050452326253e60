"""Pieces of a program, each in a checkpoint of its own that saves what is named: plain JAX, found by minimum cuts.

Only a value that the backward reads under a name can be kept inside a checkpoint. Within that restriction the minimum
cut is as exact as without.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
from collections.abc import Sequence

import numpy as np

from jaxremat.backends.devices import Device
from jaxremat.base import compat
from jaxremat.cost.pricing import price
from jaxremat.emit.segments import Pieces
from jaxremat.planner.blocks import assemble_in_groups
from jaxremat.planner.candidates import CheckpointCandidates, CheckpointOutcome, PlansCheckpoints
from jaxremat.planner.contract import Traits, cheapest_within
from jaxremat.planner.decision import Checkpoints, Form
from jaxremat.solvers.mincut.assemble import assemble
from jaxremat.solvers.mincut.cut import cheapest_cut
from jaxremat.solvers.mincut.structure import Structure, early_surcharge
from jaxremat.trace.joint import Joint
from jaxremat.trace.origins import mark_of, place_of, trace_equations
from jaxremat.trace.primal import Primal

_PIECES = (2, 3, 4, 6, 8, 12, 16, 24, 32)  # benchmarks/constants.py
_PRICES = np.asarray([0.01, 0.1, 1, 1.7, 2.5, 4, 6, 8, 12, 20, 50])  # of the mean; benchmarks/constants.py
_REFINEMENTS = 5  # halvings of the ratio between two prices: to 2 % where they lie close; benchmarks/constants.py
_DEAREST = 1e6  # of the mean price: as good as infinite, and no bytes at that price still cost nothing
_WORTH_A_NAME = 1e-5  # of all bytes: hundreds of such values together are a thousandth
_READ_AT_ONCE = 0.15  # benchmarks/constants.py


class PiecePlanner(PlansCheckpoints):
    """Outcomes that put contiguous pieces of the program into checkpoints.

    Args:
      primal, device: the program, and what it runs on.
      emit: "names" or "segments".
      outer: all pieces in one checkpoint instead, for a compiler that recomputes just in time.
    """

    traits = Traits()

    def __init__(self, primal: Primal, device: Device, emit: str, outer: bool) -> None:
        self.primal = primal
        self.device = device
        self.emit = emit
        self.outer = outer
        self.origins = trace_equations(primal)
        self.candidates = CheckpointCandidates(primal, device, self.origins)
        self.graph = self.candidates.graph
        self.structure = self.candidates.structure

    def fit(self, replayed_bytes: int) -> CheckpointOutcome:
        """The cheapest outcome whose replayed peak is within a number of bytes, or the one with the smallest peak;
        prices between the listed ones are tried where the best one was found."""
        replayed_bytes = min(replayed_bytes, self.fastest_bytes)
        best = cheapest_within(self.outcomes, replayed_bytes)
        if best.replayed_bytes > replayed_bytes:
            return best
        count, enough = best.settings
        lower = [factor for factor in _PRICES if factor < enough]
        if not lower:
            return best
        too_low, enough = float(lower[-1]), min(enough, 10 * float(_PRICES[-1]))
        for _ in range(_REFINEMENTS):
            middle = float(np.sqrt(too_low * enough))
            if self._at(count, middle).replayed_bytes <= replayed_bytes:
                enough = middle
            else:
                too_low = middle
        return cheapest_within(self.outcomes, replayed_bytes)

    def least(self) -> Sequence[CheckpointOutcome]:
        """The outcome with the smallest replayed peak."""
        return [cheapest_within(self._range, 0)]

    @property
    def outcomes(self) -> list[CheckpointOutcome]:
        """Every outcome that was worth a look so far."""
        _ = self._range
        return self.candidates.all

    @functools.cached_property
    def _range(self) -> list[CheckpointOutcome]:
        """Every number of pieces at every listed price."""
        points = itertools.product(self._counts, (*_PRICES, np.inf))
        return [self._at(count, float(price_factor)) for count, price_factor in points]

    @functools.cached_property
    def _counts(self) -> list[int]:
        """Numbers of pieces that differ."""
        different = {len(self._ends(count)) + 1: count for count in reversed(_PIECES) if len(self._ends(count))}
        return sorted(different.values()) if different and not self.outer else [1, *sorted(different.values())]

    def _at(self, count: int, price_factor: float) -> CheckpointOutcome:
        def make() -> tuple[np.ndarray, Form]:
            pieces = Pieces(tuple(self._ends(count).tolist()), self._duplicated)
            kept = self._kept(pieces, price_factor)
            return self._schedule(pieces, kept), Checkpoints(self.emit, pieces, self._labels(pieces, kept), self.outer)

        return self.candidates.once((count, price_factor), make)

    def _labels(self, pieces: Pieces, kept: np.ndarray) -> tuple[tuple[int, int, str], ...]:
        named = [node for node in self._marks(kept) if self.outer or self._piece(pieces, node) < len(pieces.ends)]
        return tuple((*self._place(node), self._label(node)) for node in named)

    def _schedule(self, pieces: Pieces, kept: np.ndarray) -> np.ndarray:
        if self.outer:
            return assemble(self.graph, kept)
        return assemble_in_groups(self.graph, kept, self._node_piece(pieces))

    def _kept(self, pieces: Pieces, price_factor: float) -> np.ndarray:
        graph = self.graph
        last_piece = self._node_piece(pieces)[graph.producer] == len(pieces.ends)
        free = self.nameable if self.outer else self.nameable | (last_piece & self.structure.is_forward_value)
        most = graph.costs.sum()
        per_byte = self.structure.mean_price * min(price_factor, _DEAREST) * early_surcharge(graph)
        keep_price = np.minimum(per_byte * graph.value_bytes, most)
        keep_price = np.where(last_piece, (_READ_AT_ONCE if self.outer else 0.0) * keep_price, keep_price)
        more_than_any_cut = most + keep_price[free].sum()
        keep_price = np.where(free, keep_price, more_than_any_cut)
        run_price = np.where(graph.pinned, np.inf, graph.costs)
        kept, _ = cheapest_cut(graph, keep_price, run_price, self.structure.needed, self._crossing(pieces))
        return kept

    @functools.cached_property
    def nameable(self) -> np.ndarray:
        """[V] bool: values that a name can save; small ones and those that every piece computes are not worth one."""
        nodes = np.asarray([mark is not None for mark in self.origins.marks]) & ~self.graph.backward
        nodes &= ~np.isin(self.origins.group, self._duplicated)
        worth = self.graph.value_bytes > _WORTH_A_NAME * self.graph.value_bytes.sum()
        return nodes[self.graph.producer] & worth

    @functools.cached_property
    def _primal_structure(self) -> Structure:
        """The primal program alone, each equation at the cost of its forward nodes in the joint program."""
        alone = price(Joint(self.primal, self.primal.jaxpr), self.device)
        costs = np.zeros(alone.num_nodes)
        known = ~self.graph.backward & (self.origins.group >= 0)
        np.add.at(costs, self.origins.group[known], self.graph.costs[known])
        return Structure(dataclasses.replace(alone, costs=np.maximum(costs, alone.costs)))

    def _ends(self, count: int) -> np.ndarray:
        return self._primal_structure.boundaries(count)

    @functools.cached_property
    def _duplicated(self) -> tuple[int, ...]:
        """Equations that the inputs give almost for free."""
        graph, cheap = self._primal_structure.graph, self._primal_structure.is_cheap
        nodes = np.ones(graph.num_nodes, bool)
        nodes[graph.producer[~cheap]] = False
        return tuple(np.flatnonzero(nodes & ~graph.pinned).tolist())

    def _crossing(self, pieces: Pieces) -> np.ndarray:
        """[V] bool: marked values that a later piece of the primal reads."""
        alone = self._primal_structure
        crosses = alone.crossing_values(np.asarray(pieces.ends, np.int64))
        places: set[str] = set()
        for node, values in enumerate(alone.graph.values_of):
            places.update(mark_of(node, k) for k, value in enumerate(values) if crosses[value])
        nodes = np.asarray([mark in places for mark in self.origins.marks]) & ~self.graph.backward
        return nodes[self.graph.producer] & (self.nameable if self.outer else True)

    def _marks(self, kept: np.ndarray) -> list[int]:
        """Mark nodes whose value is kept and can carry a name."""
        return np.unique(self.graph.producer[kept & self.nameable]).tolist()

    def _node_piece(self, pieces: Pieces) -> np.ndarray:
        """[N] the piece of each node; -1 where it is unknown, or no piece's own."""
        of_equation = pieces.piece_of(len(self.primal.jaxpr.eqns))
        of_equation[list(pieces.duplicated)] = -1
        group = self.origins.group
        return np.where(group >= 0, of_equation[np.maximum(group, 0)], -1)

    def _piece(self, pieces: Pieces, node: int) -> int:
        return int(self._node_piece(pieces)[node])

    def _label(self, node: int) -> str:
        equation, k = self._place(node)
        eqn = self.primal.jaxpr.eqns[equation]
        path = re.sub(r"\w+\(|\)", "", compat.name_stack(eqn))
        return "/".join(filter(None, (path, f"{eqn.primitive.name}:{equation}" + (f".{k}" if k else ""))))

    def _place(self, node: int) -> tuple[int, int]:
        mark = self.origins.marks[node]
        assert mark is not None  # of a marked node
        return place_of(mark)
