"""Schedules judged by what is compiled: the time and the peak of the emitted program under the target's fusion.

Where element-wise work disappears in the kernels that read it, the replay of a schedule says little about its time:
what counts is which buffers are written and read, and barriers decide that as much as recomputation does. So candidates
are made along the whole range of prices, by the minimum cut that knows what the plain program's kernels take, and by
what people keep by hand; each is emitted, fused by the compiler's rules, and timed kernel by kernel. The answer for a
budget is the fastest of those whose predicted peak fits.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from jaxremat.backends.devices import Device
from jaxremat.base.compat import Var
from jaxremat.cost.kernels import seconds_again, seconds_by_equation
from jaxremat.graph.replay import Timeline
from jaxremat.graph.scheduled import ScheduledProgram, in_order, schedule_program
from jaxremat.planner.by_hand import POLICIES, blocks_of, kept_by_hand
from jaxremat.planner.contract import Outcome, Traits
from jaxremat.planner.decision import FlatFunction, Form, form_of
from jaxremat.planner.problem import Problem, pose
from jaxremat.planner.schedules import SchedulePlanner
from jaxremat.solvers.mincut.assemble import assemble_parts
from jaxremat.solvers.mincut.barriers import barriers_between
from jaxremat.solvers.mincut.boundary import SearchPoint
from jaxremat.solvers.mincut.search import Search
from jaxremat.solvers.mincut.structure import Structure
from jaxremat.trace.joint import Primal
from jaxremat.trace.round_trips import LOSSLESS

_PEAK_DOUBT = 0.17  # of unrolled programs on an H200: the most that was seen; absent_devices.py prints 0.06 now
_SEGMENTS = (1, 16)  # one, and about one per layer of common depths
_OTHER_PARTS = (0.5, 2.0)  # half and twice as many barriers
_BISECTIONS = 5  # of the ratio between two prices: to 4 %; to 15, a GPT in .7 takes 15.7 % where 6.1 would do
_MOST_LEAST = 12  # each is emitted and fused


@dataclasses.dataclass(frozen=True, eq=False)
class TimedOutcome:
    """A schedule of a program, with the predicted timeline of the emitted program."""

    problem: Problem
    program: ScheduledProgram
    timeline: Timeline

    @property
    def form(self) -> Form:
        return form_of(self.problem, self.program)

    @property
    def peak_bytes(self) -> int:
        return self.timeline.peak_bytes

    @property
    def replayed_bytes(self) -> int:
        """The predicted peak: that is what this planner searches by."""
        return self.timeline.peak_bytes

    @property
    def cost(self) -> float:
        """The predicted seconds."""
        return self.timeline.cost

    def at_cost(self, seconds: float) -> TimedOutcome:
        """The same schedule at another cost."""
        return dataclasses.replace(self, timeline=dataclasses.replace(self.timeline, cost=seconds))


class TimedPlanner:
    """The fastest schedules of a program without differentiable loops.

    Args:
      primal: the program.
      device: what its seconds and bytes are for.
      storages: forms in which values may wait for the backward.
    """

    def __init__(self, primal: Primal, device: Device, storages: tuple[str, ...] = LOSSLESS) -> None:
        self.primal = primal
        self.storages = storages
        self.as_written: FlatFunction = primal.as_written
        self.device = device
        self._made: dict[bytes, TimedOutcome] = {}
        self._at_point: dict[SearchPoint, TimedOutcome] = {}

    @property
    def traits(self) -> Traits:
        return Traits(predicts_time=True, peak_doubt=_PEAK_DOUBT)

    @functools.cached_property
    def plain(self) -> TimedOutcome:
        """The program as it stands."""
        return self._predicted(in_order(self._problem.graph))

    @property
    def made(self) -> Sequence[TimedOutcome]:
        """Every outcome so far."""
        return list(self._made.values())

    def fit(self, replayed_bytes: int) -> TimedOutcome:
        """The fastest outcome whose predicted peak is within a number of bytes, or the one with the smallest peak."""
        best = fastest(self._range, replayed_bytes)
        if best is None:
            return fastest(self.least(), replayed_bytes) or min(self.least(), key=by_peak)
        around = [*self._made.values(), *self._between(replayed_bytes), *self._released(best, replayed_bytes)]
        best = fastest(around, replayed_bytes) or best
        tried = [best, *self._just_too_large(around, replayed_bytes)]
        others = [other for outcome in tried for other in self._with_other_parts(outcome)]
        return fastest([best, *others], replayed_bytes) or best

    def leaving(self, saved_bytes: int) -> TimedOutcome:
        """The cheapest outcome whose forward leaves at most so many bytes to the backward, inputs aside."""
        return self._emitted(SchedulePlanner(self.primal, self.device, self.storages).leaving(saved_bytes).program)

    def least(self) -> Sequence[TimedOutcome]:
        """Outcomes of small predicted peak, the smallest first."""
        return self._least

    @functools.cached_property
    def _least(self) -> Sequence[TimedOutcome]:
        small = [self._emitted(candidate.program) for candidate in self._search.small_ones(_MOST_LEAST)]
        found = {id(outcome): outcome for outcome in (*self._range, *small)}
        smallest = sorted(found.values(), key=by_peak)[:_MOST_LEAST]
        return sorted({*smallest, *self._with_other_parts(smallest[0])}, key=by_peak)

    def near_misses(self, best: Outcome, peak_bytes: int) -> Sequence[Outcome]:
        """None: the prediction tells schedules apart well enough."""
        return ()

    @functools.cached_property
    def _range(self) -> list[TimedOutcome]:
        """The whole range, from everything kept to next to nothing; and what people keep by hand."""
        points = [SearchPoint(price, segments) for segments, prices in self._prices.items() for price in prices]
        return [self.plain, *self._by_hand(), *map(self._at, points)]

    @functools.cached_property
    def _prices(self) -> dict[int, list[float]]:
        """By number of segments, the prices worth a prediction: of those that give the same schedule the last, and none
        at which recomputation itself takes more bytes than a lower price does."""
        return {segments: self._falling(segments) for segments in _SEGMENTS}

    def _falling(self, segments: int) -> list[float]:
        price_of: dict[int, float] = {}
        least = np.inf
        for price in self._search.prices:
            candidate = self._search.candidate(SearchPoint(price, segments))
            if candidate.peak_bytes <= least:
                price_of[id(candidate)], least = price, candidate.peak_bytes
        return list(price_of.values())

    def _by_hand(self) -> Iterator[TimedOutcome]:
        """Checkpoints around every block, as `jax.checkpoint` runs them: a barrier where each block begins again."""
        joint, graph = self._problem.joint, self._problem.graph
        for policy in POLICIES if self._number_of_blocks else ():
            steps, start = assemble_parts(graph, kept_by_hand(joint, graph, policy))
            barriers = barriers_between(graph, steps, start, self._blocks)
            yield self._predicted(
                schedule_program(graph, steps, backward_start=start, barriers=barriers, barrier_scope="sources")
            )

    def _between(self, peak_bytes: int) -> Iterator[TimedOutcome]:
        """Outcomes at prices between one that is too low for a peak and the next one, which is enough."""
        pairs = [(segments, pair) for segments, prices in self._prices.items() for pair in itertools.pairwise(prices)]
        for segments, (low, high) in pairs:
            too_low, enough = (self._at(SearchPoint(price, segments)).peak_bytes for price in (low, high))
            if too_low <= peak_bytes or enough > peak_bytes:
                continue
            for _ in range(_BISECTIONS):
                middle = float(np.sqrt(low * high))
                outcome = self._at(SearchPoint(middle, segments))
                yield outcome
                low, high = (low, middle) if outcome.peak_bytes <= peak_bytes else (middle, high)

    def _released(self, best: TimedOutcome, peak_bytes: int) -> Iterator[TimedOutcome]:
        """What the backward has read by the time of the peak may as well be kept: it is live then in any case."""
        after = best.timeline.schedule[best.timeline.peak_step :]
        backward = after[self._problem.graph.backward[after]]
        if best.program.is_in_order or not backward.size:
            return
        for segments, prices in self._prices.items():
            peaks = [self._at(SearchPoint(price, segments)).peak_bytes for price in prices]
            fits = [i for i, peak in enumerate(peaks) if peak <= peak_bytes]
            for price in prices[max(fits[0] - 1, 0) : fits[0] + 1] if fits else ():
                yield self._at(SearchPoint(price, segments, peak_node=int(backward[0])))

    def _just_too_large(self, outcomes: Sequence[TimedOutcome], peak_bytes: int) -> list[TimedOutcome]:
        """The smallest outcome above a peak: with barriers in other places it may fit."""
        return sorted((outcome for outcome in outcomes if outcome.peak_bytes > peak_bytes), key=by_peak)[:1]

    def _with_other_parts(self, outcome: TimedOutcome) -> Iterator[TimedOutcome]:
        for factor in _OTHER_PARTS:
            yield self._emitted(outcome.program, self._structure.parts(int(factor * self._parts)))
        if self._number_of_blocks:
            yield self._emitted(outcome.program, self._blocks)

    def _at(self, point: SearchPoint) -> TimedOutcome:
        if point not in self._at_point:
            self._at_point[point] = self._emitted(self._search.candidate(point).program)
        return self._at_point[point]

    def _emitted(self, program: ScheduledProgram, part: np.ndarray | None = None) -> TimedOutcome:
        """A schedule with a barrier before each part of the forward that runs again."""
        graph = self._problem.graph
        part = self._structure.parts(self._parts) if part is None else part
        barriers = barriers_between(graph, program.steps, program.backward_start, part)
        behind = tuple(sorted({self._behind_a_kernel(program, step) for step in barriers}))
        return self._predicted(dataclasses.replace(program, barriers=behind, barrier_scope="sources"))

    def _behind_a_kernel(self, program: ScheduledProgram, step: int) -> int:
        """The place of a barrier moved up to where what enters it is written anyway, not on its way inside a kernel."""
        backward, (seconds, _) = self._problem.graph.backward, self._kernels
        while step > program.backward_start:
            before = program.steps[step - 1]
            if seconds[before] or not backward[before]:
                break
            step -= 1
        return step

    def _predicted(self, program: ScheduledProgram) -> TimedOutcome:
        """One outcome per schedule, so that what was predicted or compiled of it is not asked for twice."""
        key = program.steps.tobytes() + np.asarray(program.barriers).tobytes()
        if key not in self._made:
            problem = self._problem
            timeline = problem.predicted(program)
            self._made[key] = TimedOutcome(problem, program, timeline)
        return self._made[key]

    @functools.cached_property
    def _blocks(self) -> np.ndarray:
        """[N] the numbered module of each forward node, -1 outside of them."""
        return blocks_of(self._problem.joint)

    @property
    def _number_of_blocks(self) -> int:
        return int(self._blocks.max(initial=-1)) + 1

    @property
    def _parts(self) -> int:
        """Parts of the forward with a barrier before each: two per block, as attention and the layers after it are."""
        return max(self.device.backend.barrier_parts, 2 * self._number_of_blocks)

    @functools.cached_property
    def _problem(self) -> Problem:
        return pose(self.primal, self.device, storages=self.storages)

    @functools.cached_property
    def _kernels(self) -> tuple[np.ndarray, frozenset[Var]]:
        """Of the plain program: what each equation takes by itself, and which variables have buffers."""
        problem = self._problem
        return seconds_by_equation(problem.joint.jaxpr, self.device, problem.known.templates)

    @functools.cached_property
    def _structure(self) -> Structure:
        return self._search.structure

    @functools.cached_property
    def _search(self) -> Search:
        """The search over kept values, with what the plain program's kernels take: what a kernel computes on the way
        costs nothing to compute again, and much to keep, since a kernel would have to write it, and others read it."""
        problem, graph = self._problem, self._problem.graph
        seconds, written = self._kernels
        run_seconds = seconds_again(problem.joint.jaxpr, seconds, written, problem.run_seconds)
        made = [var for eqn in problem.joint.eqns for var in eqn.outvars]
        extra = 2 * graph.value_bytes / self.device.bandwidth_bytes_per_second + self.device.launch_seconds
        return Search(graph, run_seconds, graph.keep_costs + np.where([var in written for var in made], 0, extra))


def fastest(outcomes: Sequence[TimedOutcome], peak_bytes: int) -> TimedOutcome | None:
    """The fastest of those whose predicted peak is within a number of bytes, None where there is none."""
    within = [outcome for outcome in outcomes if outcome.peak_bytes <= peak_bytes]
    return min(within, key=lambda outcome: (outcome.cost, outcome.peak_bytes), default=None)


def by_peak(outcome: TimedOutcome) -> tuple[int, float]:
    """To sort by: the smallest peak first."""
    return outcome.peak_bytes, outcome.cost
