"""Schedules of a whole step: each hill of memory is cut and searched by itself, and what is found is a program
again, whose new hills can be cut in turn.

That covers one gradient, several one after another, gradients of gradients, and steps without any.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from jaxremat.graph.graph import Graph
from jaxremat.graph.replay import replay
from jaxremat.graph.scheduled import first_runs
from jaxremat.graph.unrolled import unrolled
from jaxremat.graph.valleys import hills
from jaxremat.planner.schedules import MOST_IN_CHECKPOINTS
from jaxremat.planner.solver_schedules import GRAINS, require_size, steps_within
from jaxremat.solvers.base import Solver
from jaxremat.solvers.mincut.barriers import PARTS, barriers_between
from jaxremat.solvers.mincut.boundary import in_two_parts
from jaxremat.solvers.mincut.search import Candidate, Search
from jaxremat.solvers.mincut.structure import Structure
from jaxremat.step.hills import Section, best_cut, cut_at, last_reader, section

_MOST_ROUNDS = 3  # benchmarks/constants.py
_GAIN = 0.02  # of the peak: what another round of cuts must gain for one more; benchmarks/constants.py


@dataclasses.dataclass(frozen=True, eq=False)
class FlatSchedule:
    """How a flat program runs.

    Attributes:
      steps: [T] nodes in execution order; repeats are recomputations.
      barriers: steps at which a stretch opens that receives all it reads through a barrier.
      peak_bytes, cost: replayed.
      barrier_scope: "all" that a stretch reads from outside enters through its barrier; or only the "sources" of what
        runs again; or as "all" in strict "order": what a stretch made for later ones passes the next barrier, too.
    """

    steps: np.ndarray
    barriers: tuple[int, ...]
    peak_bytes: int
    cost: float
    barrier_scope: str = "all"

    def with_sources_behind_barriers(self) -> FlatSchedule:
        """The same with barriers for what runs again alone."""
        return dataclasses.replace(self, barrier_scope="sources")

    def stretch_by_stretch(self) -> FlatSchedule:
        """The same such that all of one stretch is made before the next begins."""
        return dataclasses.replace(self, barrier_scope="order")

    def followed_closely(self, ends: np.ndarray) -> FlatSchedule:
        """The same with more barriers, which let the compiler choose little of the order: a stretch ends in any case
        after some nodes ([N] bool), where they run first."""
        after = 1 + np.flatnonzero(ends[self.steps[:-1]] & first_runs(self.steps)[:-1])
        barriers = tuple(sorted({*self.barriers, *after.tolist()}))
        return dataclasses.replace(self, barriers=barriers, barrier_scope="order")


class StepSearch:
    """Schedules of one flat program for any budget; what does not depend on the budget is done once.

    Args:
      graph: the program, in an order that runs.
      run_seconds: [N] what running each node again is taken to cost; infinite where it must not.
    """

    def __init__(self, graph: Graph, run_seconds: np.ndarray) -> None:
        self.graph = graph
        self._run_seconds = run_seconds

    @functools.cached_property
    def plain(self) -> FlatSchedule:
        """The program as it stands."""
        return in_order(self.graph)

    def fit(self, budget_bytes: int) -> FlatSchedule:
        """The cheapest schedule found whose replayed peak is within the budget, or one with a small peak: where one
        round of cuts is not enough, what it leaves too high is cut again."""
        if self.plain.peak_bytes <= budget_bytes:
            return self.plain
        best = self._first_round.fit(budget_bytes)
        if best.peak_bytes > budget_bytes and self.smallest.peak_bytes > budget_bytes:
            return self.smallest
        for _ in range(_MOST_ROUNDS - 1):
            if best.peak_bytes <= budget_bytes:
                break
            again = self._round(best, budget_bytes).fit(budget_bytes)
            if again.peak_bytes > (1 - _GAIN) * best.peak_bytes:
                break
            best = again
        return best

    def fits_quickly(self, budget_bytes: int) -> bool:
        """Whether one cut of each hill is enough."""
        return self.plain.peak_bytes <= budget_bytes or self._first_round.fits_quickly(budget_bytes)

    @functools.cached_property
    def smallest(self) -> FlatSchedule:
        """The schedule with the smallest replayed peak: from the second round of cuts on, at the highest hill."""
        best = self._first_round.smallest()
        for _ in range(_MOST_ROUNDS - 1):
            again = self._round(best, best.peak_bytes).smallest()
            if again.peak_bytes > (1 - _GAIN) * best.peak_bytes:
                break
            best = again
        return min([best, self.plain], key=_by_peak)

    def smallest_few(self) -> list[FlatSchedule]:
        """Schedules of small replayed peak: what to try where the prediction finds the rest too large."""
        return sorted([self.smallest, *self._first_round.smallest_few()], key=_by_peak)

    def in_checkpoints(self) -> list[FlatSchedule]:
        """Schedules in which whole segments of each hill run again behind one barrier, and groups of them."""
        return self._first_round.in_checkpoints()

    def in_layers(self, contracts: np.ndarray) -> list[FlatSchedule]:
        """Schedules in which each hill runs again layer by layer, contractions ([N] bool) among what is made again, and
        without them."""
        return self._first_round.in_layers(contracts)

    @functools.cached_property
    def _first_round(self) -> Round:
        return self._round(self.plain, 0)

    def _round(self, schedule: FlatSchedule, least_bytes: int) -> Round:
        """Hills of at least a height of the program that a schedule is, each cut where that gains the most."""
        graph = unrolled(self.graph, schedule.steps, schedule.steps.size)
        run_seconds = self._run_seconds[schedule.steps]
        live = _live_bytes(graph)
        least = max(least_bytes - graph.resident_bytes, int(live.max()) // 2)
        found = []
        for first, end in hills(live):
            while first < end and live[first:end].max() >= least:
                found.append(_searched(graph, run_seconds, live, first, end))
                first = found[-1][0].end
        return Round(self.graph, schedule, tuple(found))


class SolverSearch:
    """Schedules of one flat program by a solver of graphs, which has one answer per budget.

    Args:
      graph: the program, in an order that runs.
      solver: the solver.
      seed: for solvers that draw random numbers.
    """

    def __init__(self, graph: Graph, solver: Solver, seed: int) -> None:
        require_size(graph, solver)
        self.graph = graph
        self._ask = functools.cache(lambda budget_bytes: steps_within(graph, budget_bytes, solver, seed))

    @functools.cached_property
    def plain(self) -> FlatSchedule:
        """The program as it stands."""
        return in_order(self.graph)

    def fit(self, budget_bytes: int) -> FlatSchedule:
        """The solver's schedule for a replayed peak, or the one with the smallest peak that it reaches."""
        if self.plain.peak_bytes <= budget_bytes:
            return self.plain
        grain = max(1, self.plain.peak_bytes // GRAINS)
        steps = self._ask(max(1, budget_bytes // grain * grain))
        parts = Structure(in_two_parts(self.graph)).parts(PARTS)
        return judged(self.graph, steps, barriers_between(self.graph, steps, steps.size, parts))

    def fits_quickly(self, budget_bytes: int) -> bool:
        """Whether the solver's schedule fits."""
        return self.fit(budget_bytes).peak_bytes <= budget_bytes

    @property
    def smallest(self) -> FlatSchedule:
        """The schedule with the smallest replayed peak that the solver reaches."""
        return self.fit(1)

    def smallest_few(self) -> list[FlatSchedule]:
        """The same alone."""
        return [self.smallest]

    def in_checkpoints(self) -> list[FlatSchedule]:
        """None: the solver decides."""
        return []

    def in_layers(self, contracts: np.ndarray) -> list[FlatSchedule]:
        """None: the solver decides."""
        return []


@dataclasses.dataclass(frozen=True, eq=False)
class Round:
    """The hills of a scheduled program, each cut, and searched as a program of its own.

    Attributes:
      graph: the program.
      schedule: how it runs.
      parts: the hills, with their searches.
    """

    graph: Graph
    schedule: FlatSchedule
    parts: tuple[tuple[Section, Search], ...]

    def fit(self, budget_bytes: int) -> FlatSchedule:
        """Each hill at the least cost within a budget, or as low as it goes."""
        return self.composed([search.fit(budget_bytes) for _, search in self.parts])

    def fits_quickly(self, budget_bytes: int) -> bool:
        """Whether each hill fits with one cut."""
        return all(search.fit_quickly(budget_bytes) for _, search in self.parts)

    def smallest(self) -> FlatSchedule:
        """Each hill as low as it goes."""
        return self.composed([search.smallest for _, search in self.parts])

    def smallest_few(self) -> list[FlatSchedule]:
        """Schedules in which each hill is low."""
        return self._side_by_side([search.smallest_of_each_shape() for _, search in self.parts])

    def in_checkpoints(self) -> list[FlatSchedule]:
        """Schedules in which each hill runs again in segments, and in groups of them where there are enough."""
        once = [search.checkpointed() for _, search in self.parts]
        twice = [search.checkpointed_twice() or found for (_, search), found in zip(self.parts, once, strict=True)]
        each = (sorted(self._side_by_side(found), key=_by_peak) for found in (once, twice))
        return [schedule for found in each for schedule in found[:MOST_IN_CHECKPOINTS]]

    def in_layers(self, contracts: np.ndarray) -> list[FlatSchedule]:
        """Schedules in which each hill runs again layer by layer; [N] bool, the nodes that are contractions.

        Hills are cut behind contractions here: where a layer runs again, all that reads what it makes does so late.
        """
        found = []
        for part, search in self.parts:
            inside = np.concatenate([[False], contracts[self.schedule.steps[part.first : part.end]]])
            cut = best_cut(search.graph, search.graph.rerun_costs, _live_bytes(search.graph), behind=inside)
            found.append(Search(cut).in_layers(inside))
        return self._side_by_side(found) if all(found) else []

    def _side_by_side(self, each: Sequence[Sequence[Candidate]]) -> list[FlatSchedule]:
        """The first candidates of all hills, the second ones, and so on; the last again where there are fewer."""
        most = max(map(len, each), default=0)
        return [self.composed([found[min(i, len(found) - 1)] for found in each]) for i in range(most)]

    def composed(self, candidates: Sequence[Candidate]) -> FlatSchedule:
        """The program with its hills run as chosen; its barriers stay where their steps run first."""
        order = np.arange(self.schedule.steps.size)
        pieces: list[np.ndarray] = []
        opened: list[int] = []
        done = length = 0
        for (part, _), candidate in zip(self.parts, candidates, strict=True):
            inside = part.nodes(candidate.program.steps)
            pieces += [order[done : part.first], inside]
            length += part.first - done
            if inside.size > part.end - part.first:
                opened += [length + t - 1 for t in (candidate.program.backward_start, *candidate.program.barriers)]
            length, done = length + inside.size, part.end
        steps = np.concatenate([*pieces, order[done:]])
        moved = [int(np.flatnonzero(steps == barrier)[0]) for barrier in self.schedule.barriers]
        barriers = tuple(sorted({t for t in (*opened, *moved) if t < steps.size}))
        return judged(self.graph, self.schedule.steps[steps], barriers)


def turn_of(graph: Graph, run_seconds: np.ndarray) -> int:
    """The node at which the highest hill of a program is cut."""
    live = _live_bytes(graph)
    first, end = max(hills(live), key=lambda bounds: live[bounds[0] : bounds[1]].max())
    part, search = _searched(graph, run_seconds, live, first, end)
    return part.first + search.graph.backward_start - 1


def _live_bytes(graph: Graph) -> np.ndarray:
    """[N] of a program in order, without what is live throughout."""
    return replay(graph, np.arange(graph.num_nodes)).live_bytes - graph.resident_bytes


def _searched(graph: Graph, run_seconds: np.ndarray, live: np.ndarray, first: int, end: int) -> tuple[Section, Search]:
    """A hill, cut where that gains the most, up to where the last of what may be made again is read."""
    part = section(graph, first, end)
    seconds = np.concatenate([[np.inf], run_seconds[first:end]])
    cut = best_cut(part.graph, seconds, np.concatenate([[0], live[first:end]]))
    last = last_reader(cut, seconds)
    if last:
        part, turn = section(graph, first, first + last), cut.backward_start
        cut, seconds = cut_at(part.graph, turn), seconds[: last + 1]
    return part, Search(cut, seconds)


def in_order(graph: Graph) -> FlatSchedule:
    """A program as it stands."""
    return judged(graph, np.arange(graph.num_nodes, dtype=np.int32), ())


def judged(graph: Graph, steps: np.ndarray, barriers: tuple[int, ...]) -> FlatSchedule:
    """A schedule with its replayed numbers."""
    timeline = replay(graph, steps)
    return FlatSchedule(timeline.schedule, barriers, timeline.peak_bytes, timeline.cost)


def _by_peak(schedule: FlatSchedule) -> tuple[int, float]:
    return schedule.peak_bytes, schedule.cost
