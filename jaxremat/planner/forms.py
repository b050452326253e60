"""Plans for the forms that stay plain JAX: what `jax.checkpoint` and names can express, and nothing else.

A candidate says which values the forward keeps. The joint program prices it exactly as any other schedule, with one
restriction: only a value that the backward reads under a name can be kept inside a checkpoint. Within it, the minimum
cut is as exact as without.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
from collections.abc import Callable, Hashable, Iterable
from typing import Any

import numpy as np

from jaxremat.backends.devices import Device
from jaxremat.base import compat
from jaxremat.base.errors import EmissionError
from jaxremat.cost.memory import estimate_memory
from jaxremat.cost.pricing import price
from jaxremat.emit.names import emit_repoliced
from jaxremat.emit.segments import Pieces, emit_in_one, emit_pieces
from jaxremat.graph.graph import Graph
from jaxremat.graph.replay import Timeline, replay
from jaxremat.planner.blocks import assemble_in_groups
from jaxremat.planner.planner import Outcome
from jaxremat.planner.prediction import is_toy
from jaxremat.planner.problem import Problem
from jaxremat.solvers.mincut.assemble import assemble
from jaxremat.solvers.mincut.cut import cheapest_cut
from jaxremat.solvers.mincut.structure import Structure
from jaxremat.trace import jaxpr as jaxprs
from jaxremat.trace.joint import Joint, Primal, gradient_jaxpr
from jaxremat.trace.origins import Origins, names_in, trace_equations, trace_regions

_PIECES = (2, 3, 4, 6, 8, 12, 16, 24, 32)
_PRICES = np.asarray([0.01, 0.1, 1, 1.7, 2.5, 4, 6, 8, 12, 20, 50])
_REFINEMENTS = 5
_LAYER_SLOPE = 0.05
_FORBIDDEN = 1e3
_READ_AT_ONCE = 0.15
_MOST_NAMES_IN_FULL = 7


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class FormOutcome(Outcome):
    """A schedule that a form can express.

    Attributes:
      emitted: the flat program in this form.
      names: what the policy saves.
      extra: what else the form needs, JSON-able.
    """

    emitted: Callable[..., list]
    names: tuple[str, ...]
    extra: dict[str, Any]

    @functools.cached_property
    def timeline(self) -> Timeline:
        """The replay, value by value."""
        return replay(self.problem.graph, self.schedule)

    @functools.cached_property
    def peak_bytes(self) -> int:
        """The predicted peak of the emitted program, as JAX differentiates it."""
        if is_toy(self.problem.graph, self.problem.device):
            return self.timeline.peak_bytes
        program = gradient_jaxpr(self.problem.primal, lambda inputs: self.emitted(*inputs))
        estimate = estimate_memory(program, self.problem.device)
        return int(estimate.live_bytes.max(initial=0)) + estimate.argument_bytes + estimate.output_bytes


class FormPlanner:
    """Outcomes of one form for one program on one device, for any budget.

    Args:
      primal: the program.
      device: what its costs and bytes are for.
      origins: its joint program, with groups and marks.
    """

    def __init__(self, primal: Primal, device: Device, origins: Origins):
        self.primal = primal
        self.device = device
        self.origins = origins
        self.graph = _without_marks(price(origins.joint, device), origins)
        self.problem = Problem(primal, (), origins.joint, self.graph, device)
        self.structure = Structure(self.graph)
        self._made: dict[Hashable, FormOutcome] = {}

    @functools.cached_property
    def plain(self) -> FormOutcome:
        """The program without recomputation."""
        emitted = lambda *inputs: jaxprs.evaluate(self.primal.jaxpr, inputs)
        return self._outcome("plain", np.arange(self.graph.num_nodes, dtype=np.int32), emitted, (), {})

    def fit(self, replayed_bytes: int) -> FormOutcome:
        """The cheapest outcome whose replayed peak is within a number of bytes, or the one with the smallest peak."""
        within = [outcome for outcome in self.outcomes if outcome.replayed_bytes <= replayed_bytes]
        if not within:
            return min(self.outcomes, key=lambda outcome: (outcome.replayed_bytes, outcome.cost))
        return min(within, key=lambda outcome: (outcome.cost, outcome.replayed_bytes))

    def contenders(self, best: Outcome, room_bytes: int) -> list[FormOutcome]:
        """Cheaper outcomes that are predicted to need little more than one that fits, the least demanding first."""
        cheaper = [outcome for outcome in self.outcomes if outcome.cost < best.cost - 1e-9]
        near = [outcome for outcome in cheaper if outcome.replayed_bytes <= best.replayed_bytes + room_bytes]
        return sorted(near, key=lambda outcome: (outcome.replayed_bytes, outcome.cost))

    @property
    def outcomes(self) -> list[FormOutcome]:
        """Every outcome that is worth a look."""
        raise NotImplementedError

    def _outcome(
        self, key: Hashable, schedule: np.ndarray, emitted: Callable, names: tuple[str, ...], extra: dict
    ) -> FormOutcome:
        if key not in self._made:
            timeline = replay(self.graph, schedule)
            self._made[key] = FormOutcome(
                problem=self.problem,
                schedule=schedule,
                replayed_bytes=timeline.peak_bytes,
                cost=timeline.cost,
                emitted=emitted,
                names=names,
                extra=extra,
            )
        return self._made[key]


class PiecePlanner(FormPlanner):
    """Contiguous pieces of the program, each in a checkpoint of its own that saves what is named.

    Args:
      primal, device: the program, and what it runs on.
      outer: all pieces in one checkpoint instead, for a compiler that recomputes just in time.
    """

    def __init__(self, primal: Primal, device: Device, outer: bool):
        super().__init__(primal, device, trace_equations(primal))
        self.outer = outer

    @property
    def outcomes(self) -> list[FormOutcome]:
        for count, price_factor in itertools.product(self._counts, (*_PRICES, np.inf)):
            self._at(count, float(price_factor))
        return [outcome for key, outcome in self._made.items() if key != "plain"]

    def fit(self, replayed_bytes: int) -> FormOutcome:
        """As the base class; prices between the listed ones are tried where the best one was found."""
        best = super().fit(replayed_bytes)
        if best.replayed_bytes > replayed_bytes or not best.extra:
            return best
        count, enough = best.extra["tried"]
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
        return super().fit(replayed_bytes)

    @functools.cached_property
    def _counts(self) -> list[int]:
        """Numbers of pieces that differ."""
        different = {len(self._ends(count)) + 1: count for count in reversed(_PIECES) if len(self._ends(count))}
        return sorted(different.values()) if different and not self.outer else [1, *sorted(different.values())]

    def _at(self, count: int, price_factor: float) -> FormOutcome:
        key = count, price_factor
        if key in self._made:
            return self._made[key]
        pieces = Pieces(tuple(self._ends(count).tolist()), self._sunk)
        kept = self._kept(pieces, price_factor)
        named = [node for node in self._marks(kept) if self.outer or self._piece(pieces, node) < len(pieces.ends)]
        labels = {_place(self.origins.marks[node]): self._label(node) for node in named}
        extra = {
            "pieces": pieces.to_json(),
            "outer": self.outer,
            "labels": [[*place, label] for place, label in labels.items()],
            "tried": [count, price_factor],
        }
        emitted = (emit_in_one if self.outer else emit_pieces)(self.primal, pieces, labels)
        return self._outcome(key, self._schedule(pieces, kept), emitted, tuple(labels.values()), extra)

    def _schedule(self, pieces: Pieces, kept: np.ndarray) -> np.ndarray:
        if self.outer:
            return assemble(self.graph, kept)
        return assemble_in_groups(self.graph, kept, self._node_piece(pieces))

    def _kept(self, pieces: Pieces, price_factor: float) -> np.ndarray:
        graph = self.graph
        last_piece = self._node_piece(pieces)[graph.producer] == len(pieces.ends)
        free = self.nameable if self.outer else self.nameable | (last_piece & self.structure.is_forward_value)
        most = graph.costs.sum()
        factor = 1 + _LAYER_SLOPE * (1 - graph.producer / max(graph.num_nodes, 1))
        per_byte = self._mean_price * min(price_factor, 1e6)
        keep_price = np.where(free, np.minimum(per_byte * factor * graph.value_bytes, most), _FORBIDDEN * most)
        keep_price = np.where(last_piece & free, (_READ_AT_ONCE if self.outer else 0.0) * keep_price, keep_price)
        run_price = np.where(graph.pinned, np.inf, graph.costs)
        kept, _ = cheapest_cut(graph, keep_price, run_price, self.structure.needed, self._crossing(pieces))
        return kept

    @functools.cached_property
    def _mean_price(self) -> float:
        forward = self.structure.forward_nodes
        return self.graph.costs[forward].sum() / max(self.graph.node_bytes[forward].sum(), 1)

    @functools.cached_property
    def nameable(self) -> np.ndarray:
        """[V] bool: values that a name can save; small ones and those that every piece computes are not worth one."""
        nodes = np.asarray([mark is not None for mark in self.origins.marks]) & ~self.graph.backward
        nodes &= ~np.isin(self.origins.group, self._sunk)
        worth = self.graph.value_bytes > 1e-5 * self.graph.value_bytes.sum()
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
    def _sunk(self) -> tuple[int, ...]:
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
            places.update(f"{node}.{k}" for k, value in enumerate(values) if crosses[value])
        nodes = np.asarray([mark in places for mark in self.origins.marks]) & ~self.graph.backward
        return nodes[self.graph.producer] & (self.nameable if self.outer else True)

    def _marks(self, kept: np.ndarray) -> list[int]:
        """Mark nodes whose value is kept and can carry a name."""
        return np.unique(self.graph.producer[kept & self.nameable]).tolist()

    def _node_piece(self, pieces: Pieces) -> np.ndarray:
        """[N] the piece of each node; -1 where it is unknown, or no piece's own."""
        of_equation = pieces.piece_of(len(self.primal.jaxpr.eqns))
        of_equation[list(pieces.sunk)] = -1
        group = self.origins.group
        return np.where(group >= 0, of_equation[np.maximum(group, 0)], -1)

    def _piece(self, pieces: Pieces, node: int) -> int:
        return int(self._node_piece(pieces)[node])

    def _label(self, node: int) -> str:
        equation, k = _place(self.origins.marks[node])
        eqn = self.primal.jaxpr.eqns[equation]
        path = re.sub(r"\w+\(|\)", "", compat.name_stack(eqn))
        return "/".join(filter(None, (path, f"{eqn.primitive.name}:{equation}" + (f".{k}" if k else ""))))


class OwnNamesPlanner(FormPlanner):
    """The author's checkpoints and the author's names: the choice is which of his names to save.

    Args:
      primal, device: the program, and what it runs on.
      names: the names in it.
    """

    def __init__(self, primal: Primal, device: Device, names: tuple[str, ...]):
        assert primal.raw is not None  # that is where the names were found
        super().__init__(primal, device, trace_regions(primal, primal.raw))
        self.raw = primal.raw
        self.names = names

    @functools.cached_property
    def outcomes(self) -> list[FormOutcome]:
        if len(self.names) <= _MOST_NAMES_IN_FULL:
            sizes = range(len(self.names) + 1)
            return [self._saving(chosen) for size in sizes for chosen in itertools.combinations(self.names, size)]
        return self._one_by_one()

    def _one_by_one(self) -> list[FormOutcome]:
        """Names added in the order of seconds saved per byte held."""
        now = self._saving(())
        while len(now.names) < len(self.names):
            more = [self._saving((*now.names, name)) for name in self.names if name not in now.names]
            now = max(more, key=functools.partial(_seconds_saved_per_byte, now))
        return [outcome for key, outcome in self._made.items() if key != "plain"]

    def _saving(self, chosen: Iterable[str]) -> FormOutcome:
        chosen = tuple(name for name in self.names if name in set(chosen))
        graph, group = self.graph, self.origins.group
        named = np.asarray([mark in chosen for mark in self.origins.marks]) & ~graph.backward
        kept = self.structure.is_forward_value & (self._always_kept | named[graph.producer])
        schedule = assemble_in_groups(graph, kept, group)
        emitted = emit_repoliced(self.raw, chosen)
        return self._outcome(chosen, schedule, emitted, chosen, {"own": True})

    @functools.cached_property
    def _always_kept(self) -> np.ndarray:
        """[V] bool: what no checkpoint holds, and what enters or leaves one."""
        graph, group = self.graph, self.origins.group
        value, node = graph.reads.T
        home = group[graph.producer]
        kept = home < 0
        kept[value[home[value] != group[node]]] = True
        return kept


def planner_for(form: str, primal: Primal, device: Device) -> FormPlanner:
    """The planner of a form.

    Raises:
      EmissionError: if the program has nothing that the form could save.
    """
    if form == "names":
        own = names_in(primal.raw) if primal.raw is not None else ()
        if own:
            return OwnNamesPlanner(primal, device, tuple(own))
        planner = PiecePlanner(primal, device, outer=not device.backend.names_in_pieces)
        if not planner.nameable.any():
            raise EmissionError(
                "no value of this program can be saved by name: the backward reads every one of them before a name"
                ' could be put. emit="segments" or emit="schedule" can plan it.'
            )
        return planner
    return PiecePlanner(primal, device, outer=False)


def _place(mark: str | None) -> tuple[int, int]:
    assert mark is not None  # of a marked node
    equation, k = mark.split(".")
    return int(equation), int(k)


def _seconds_saved_per_byte(now: FormOutcome, then: FormOutcome) -> float:
    return (now.cost - then.cost) / max(then.replayed_bytes - now.replayed_bytes, 1)


def _without_marks(graph: Graph, origins: Origins) -> Graph:
    """Marks cost nothing, and hold nothing beside what they mark unless that is read by itself."""
    marks = np.asarray([mark is not None for mark in origins.marks])
    costs = np.where(marks, 0.0, graph.costs)
    value_bytes = graph.value_bytes.copy()
    for node in np.flatnonzero(marks).tolist():
        for source in graph.values_read[node]:
            if graph.readers[source] == (node,):
                value_bytes[source] = 0
    return dataclasses.replace(graph, costs=costs, value_bytes=value_bytes)
