"""The search for a schedule of a joint graph that fits in a budget, at the least extra time.

A candidate is described by four dials (`Dials`):

- the price of a kept byte in seconds, for which the minimum cut is exact: raising it keeps fewer bytes and recomputes
  more, along the lower convex hull of the two;
- into how many segments the forward is cut: values that cross a cut are kept, so that no recomputation reaches further
  back than a segment and what is recomputed at a time stays small;
- into how many groups of segments: with more than one, the forward leaves only what crosses groups, and a group's
  forward runs again before its backward (two levels, for budgets below what one level reaches);
- the node of the backward at which memory peaks: what the backward has read until then is live at the peak whether
  it was kept or not, so keeping it is free.

The replay judges every candidate. Prices fall slightly along the forward, so that equal layers change their mind one
after another, the earliest first: what early layers keep is live longest.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from jaxremat.graph.graph import Graph
from jaxremat.graph.replay import replay
from jaxremat.graph.scheduled import ScheduledProgram, in_order, schedule_program
from jaxremat.solvers.mincut.assemble import assemble_parts, barriers_between
from jaxremat.solvers.mincut.cut import cheapest_cut
from jaxremat.solvers.mincut.structure import Structure, ends_of_groups

_SEGMENTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48)
_GROUPS = (2, 3, 4, 6, 8)
_LAYER_SLOPE = 0.05
_REFINEMENTS = 6
_PRICES = np.logspace(-2, 2.5, 10)
_BARRIER_PARTS = 64
_PRICE_OF_NOTHING = 4.0  # in whole programs per byte: more than running everything again


@dataclasses.dataclass(frozen=True)
class Dials:
    """What describes a candidate; see the module."""

    price: float
    segments: int = 1
    groups: int = 1
    peak_node: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class Candidate:
    """A schedule with its replayed numbers.

    Attributes:
      dials: what it was made from, None for the plain program.
      program: the schedule.
      peak_bytes, cost: from the replay.
      peak_node: the first backward node at or after the replayed peak.
    """

    dials: Dials | None
    program: ScheduledProgram
    peak_bytes: int
    cost: float
    peak_node: int


class Search:
    """Candidates for one joint graph; every one that was made is remembered.

    Args:
      graph: a joint graph.
      run_seconds: [N] what running each forward node again is taken to cost, infinite where it must not; its cost by
        default.
      keep_seconds: [V] what keeping each value is taken to cost beside its bytes; nothing by default.
    """

    def __init__(self, graph: Graph, run_seconds: np.ndarray | None = None, keep_seconds: np.ndarray | None = None):
        self.graph = graph
        self.structure = Structure(graph)
        self._run_seconds = np.where(graph.pinned, np.inf, graph.costs) if run_seconds is None else run_seconds
        self._keep_seconds = np.zeros(graph.num_values) if keep_seconds is None else keep_seconds
        self._made: dict[Dials, Candidate] = {}
        self._laid_out: dict[tuple[bytes, int, int], Candidate] = {}

    @functools.cached_property
    def plain(self) -> Candidate:
        """The program as it stands: everything is computed once, in the given order."""
        return self._judge(None, in_order(self.graph))

    def fit(self, budget_bytes: int) -> Candidate:
        """The cheapest candidate whose replayed peak is within the budget, or the one with the smallest peak."""
        if self.plain.peak_bytes <= budget_bytes:
            return self.plain
        best = self._fit_all([(segments, 1) for segments in _SEGMENTS], 0, budget_bytes, None)
        if best is None:
            best = self._fit_all(self._two_levels, 0, budget_bytes, None)
        if best is None:
            return self.smallest
        dials = best.dials
        assert dials is not None  # not the plain candidate
        around = [(dials.segments, dials.groups), *((s, 1) for s in _SEGMENTS if s < dials.segments)]
        return self._fit_all(around, best.peak_node, budget_bytes, best) or best

    @functools.cached_property
    def smallest(self) -> Candidate:
        """The candidate with the smallest replayed peak."""
        least = min([self.smallest_of_each_shape()[0], self.plain], key=_by_peak)
        if least.dials is None:
            return least
        released = dataclasses.replace(least.dials, peak_node=least.peak_node)
        again = [self.candidate(dataclasses.replace(released, price=price)) for price in self.prices]
        return min([least, *again], key=_by_peak)

    def smallest_of_each_shape(self) -> list[Candidate]:
        """For every number of segments and groups, the candidate with the smallest replayed peak, smallest first."""
        shapes = [*((segments, 1) for segments in _SEGMENTS), *self._two_levels]
        least = [
            min((self.candidate(Dials(price, *shape)) for price in self.prices[3:]), key=_by_peak) for shape in shapes
        ]
        return sorted(least, key=_by_peak)

    def leaving(self, saved_bytes: int) -> Candidate:
        """The cheapest candidate whose forward leaves at most so many bytes to the backward, inputs aside; the one that
        leaves the fewest where that is more. It is laid out as `jax.checkpoint` does it: all that runs again runs at
        the start of the backward, behind one barrier."""
        if self._saved_bytes(self.plain) <= saved_bytes:
            return self.plain
        dearest = self.candidate(Dials(float(_PRICE_OF_NOTHING * self.graph.costs.sum())))
        tried = [self.candidate(Dials(price)) for price in self.prices]
        fewer = [c for c in tried if self._saved_bytes(c) <= saved_bytes]
        too_low = max((c.dials.price for c in tried if c.dials and c not in fewer), default=None)
        enough = min(fewer, key=_by_cost, default=dearest)
        for _ in range(_REFINEMENTS if fewer and too_low else 0):
            assert too_low is not None and enough.dials is not None
            between = self.candidate(Dials(float(np.sqrt(too_low * enough.dials.price))))
            if self._saved_bytes(between) <= saved_bytes:
                enough = between
            else:
                assert between.dials is not None
                too_low = between.dials.price
        return self._judge(enough.dials, self._recomputing_first(enough.program))

    def _recomputing_first(self, program: ScheduledProgram) -> ScheduledProgram:
        tail = program.steps[program.backward_start :]
        late = self.graph.backward[tail]
        steps = np.concatenate([program.steps[: program.backward_start], np.unique(tail[~late]), tail[late]])
        return schedule_program(self.graph, steps, backward_start=program.backward_start, barriers=())

    def _saved_bytes(self, candidate: Candidate) -> int:
        return int(self.graph.value_bytes[candidate.program.saved].sum())

    def candidate(self, dials: Dials) -> Candidate:
        """The candidate that the dials describe."""
        if dials not in self._made:
            self._made[dials] = self._make(dials)
        return self._made[dials]

    @property
    def _two_levels(self) -> list[tuple[int, int]]:
        return [(segments, groups) for segments in _SEGMENTS for groups in _GROUPS if segments >= 2 * groups]

    @functools.cached_property
    def prices(self) -> list[float]:
        """Prices in seconds per byte, from one that keeps all but the cheapest bytes to one that keeps next to none."""
        forward = self.structure.forward_nodes
        mean = self.graph.costs[forward].sum() / max(self.graph.node_bytes[forward].sum(), 1)
        return [float(price) for price in mean * _PRICES]

    def _fit_all(self, shapes, peak_node: int, budget_bytes: int, best: Candidate | None) -> Candidate | None:
        for segments, groups in shapes:
            found = self._fit(Dials(0.0, segments, groups, peak_node), budget_bytes, best)
            if found and (best is None or _by_cost(found) < _by_cost(best)):
                best = found
        return best

    def _fit(self, shape: Dials, budget_bytes: int, best: Candidate | None) -> Candidate | None:
        """The smallest price at which a shape fits; None where it does not, or cannot beat `best`."""
        too_low = None
        for price in self.prices:
            candidate = self.candidate(dataclasses.replace(shape, price=price))
            if candidate.peak_bytes <= budget_bytes:
                return self._refined(too_low, candidate, budget_bytes)
            if best is not None and candidate.cost >= best.cost:
                return None
            too_low = price
        return None

    def _refined(self, too_low: float | None, enough: Candidate, budget_bytes: int) -> Candidate:
        for _ in range(_REFINEMENTS if too_low else 0):
            assert too_low is not None and enough.dials is not None
            middle = float(np.sqrt(too_low * enough.dials.price))
            candidate = self.candidate(dataclasses.replace(enough.dials, price=middle))
            if candidate.peak_bytes <= budget_bytes:
                enough = candidate
            else:
                too_low = middle
        return enough

    def _make(self, dials: Dials) -> Candidate:
        graph, structure = self.graph, self.structure
        must_keep = structure.crossing_values(structure.boundaries(dials.segments))
        position = 1 + _LAYER_SLOPE * (1 - graph.producer / max(graph.num_nodes, 1))
        until_peak = structure.first_backward_read > dials.peak_node
        keep_price = dials.price * position * until_peak * graph.value_bytes + self._keep_seconds
        kept, _ = cheapest_cut(graph, keep_price, self._run_seconds, structure.needed, must_keep)
        shape = (kept.tobytes(), dials.groups, dials.segments if dials.groups > 1 else 0)
        if shape not in self._laid_out:
            self._laid_out[shape] = self._lay_out(dials, kept)
        return dataclasses.replace(self._laid_out[shape], dials=dials)

    def _lay_out(self, dials: Dials, kept: np.ndarray) -> Candidate:
        graph, structure = self.graph, self.structure
        if dials.groups == 1:
            return self._judge(dials, self._with_barriers(*assemble_parts(graph, kept)))
        ends = ends_of_groups(structure.boundaries(dials.segments), dials.groups)
        group = np.searchsorted(ends, np.arange(graph.num_nodes))
        across = structure.crossing_values(ends) | self._made_once
        return self._judge(dials, self._with_barriers(*assemble_parts(graph, kept, group, across)))

    @functools.cached_property
    def _made_once(self) -> np.ndarray:
        """[V] forward values whose producer must not run again: the forward leaves them, whatever group they are of."""
        return self.structure.is_forward_value & ~np.isfinite(self._run_seconds[self.graph.producer])

    def _judge(self, dials: Dials | None, program: ScheduledProgram) -> Candidate:
        timeline = replay(self.graph, program.steps)
        later = program.steps[timeline.peak_step :]
        backward = later[self.graph.backward[later]]
        peak_node = int(backward[0]) if backward.size else 0
        return Candidate(dials, program, timeline.peak_bytes, timeline.cost, peak_node)

    def _with_barriers(self, schedule: np.ndarray, start: int) -> ScheduledProgram:
        return schedule_program(
            self.graph,
            schedule,
            backward_start=start,
            barriers=barriers_between(self.graph, schedule, start, self._part),
        )

    @functools.cached_property
    def _part(self) -> np.ndarray:
        """[N] in which of many small parts of the forward each node lies."""
        return self.structure.parts(_BARRIER_PARTS)


def _by_peak(candidate: Candidate) -> tuple[int, float]:
    return candidate.peak_bytes, candidate.cost


def _by_cost(candidate: Candidate) -> tuple[float, int]:
    return candidate.cost, candidate.peak_bytes
