"""Schedules judged by what is compiled: the time and the peak of the emitted program under the target's fusion.

Where element-wise work disappears in the kernels that read it, the replay of a schedule says little about its time:
what counts is which buffers are written and read, and barriers decide that as much as recomputation does. So candidates
are made by the minimum cut that knows what the plain program's kernels take, and by what people keep by hand; each is
emitted, fused by the compiler's rules, and timed kernel by kernel. The answer for a budget is the fastest of those
whose predicted peak fits.

A prediction takes as long as thirty cuts do. So the next schedule to be predicted is the one at the lowest price at
which the program should fit, by how far off the replays of those before it are; then the one at the next lower price.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Sequence

import numpy as np

from jaxremat.backends.devices import Device
from jaxremat.base.compat import Var
from jaxremat.cost.kernels import seconds_again, seconds_by_equation
from jaxremat.graph.replay import Timeline, replay
from jaxremat.graph.scheduled import ScheduledProgram, in_order, schedule_program
from jaxremat.planner.by_hand import POLICIES, Policy, blocks_of, kept_by_hand
from jaxremat.planner.contract import Outcome, Traits
from jaxremat.planner.decision import FlatFunction, Form, form_of
from jaxremat.planner.problem import Problem, pose
from jaxremat.planner.schedules import SchedulePlanner
from jaxremat.solvers.mincut.assemble import assemble_parts
from jaxremat.solvers.mincut.barriers import barriers_between
from jaxremat.solvers.mincut.boundary import SearchPoint
from jaxremat.solvers.mincut.search import Candidate, Search
from jaxremat.solvers.mincut.structure import Structure
from jaxremat.trace.joint import Primal
from jaxremat.trace.round_trips import LOSSLESS

PEAK_DOUBT = 0.04  # as far as most predictions for an H200 are off: prediction.md; benchmarks/doubt.py
_SEGMENTS = (1, 16)  # one, and about one per layer of common depths
_SHAPES = tuple(SearchPoint(0.0, segments) for segments in _SEGMENTS)
_OTHER_PARTS = (0.5, 2.0)  # half and twice as many barriers; benchmarks/constants.py
_HALVINGS = 5  # of the ratio between two prices: to 4 %; to 15, a GPT in .7 takes 15.7 % where 6.1 would do
_MOST_STEPS = 5  # towards the lowest price at which a shape fits: a bound, three are the rule; benchmarks/constants.py
_NEARLY = 1.05  # of a peak: other barriers take 2 to 8 % off those of GPTs and LLaMA; benchmarks/constants.py
_MOST_LEAST = 12  # each is emitted and fused; benchmarks/constants.py
_MOST_MIXTURES = 3  # where blocks begin, and as many inside of one: to a 64th; benchmarks/constants.py


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
        self._parts_of: dict[int, np.ndarray] = {}

    @property
    def traits(self) -> Traits:
        return Traits(predicts_time=True, peak_doubt=PEAK_DOUBT)

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
        self._approach(_SHAPES, replayed_bytes)
        self._approach_by_hand(replayed_bytes)
        best = self._fastest_known(replayed_bytes) or fastest(self._by_hand(), replayed_bytes)
        if best is not None:
            self._approach(self._released(best), replayed_bytes)
        best = self._fastest_known(replayed_bytes) or fastest(self._small, replayed_bytes)
        if best is None:
            return fastest(self.least(), replayed_bytes) or min(self.least(), key=by_peak)
        self._move_barriers(best, replayed_bytes)
        self._mix(replayed_bytes)
        return self._fastest_known(replayed_bytes) or best

    def _fastest_known(self, peak_bytes: int) -> TimedOutcome | None:
        return fastest([self.plain, *self.made], peak_bytes)

    def leaving(self, saved_bytes: int) -> TimedOutcome:
        """The cheapest outcome whose forward leaves at most so many bytes to the backward, inputs aside."""
        return self._emitted(SchedulePlanner(self.primal, self.device, self.storages).leaving(saved_bytes).program)

    def least(self) -> Sequence[TimedOutcome]:
        """Outcomes of small predicted peak, the smallest first."""
        return self._least

    @functools.cached_property
    def _least(self) -> Sequence[TimedOutcome]:
        found = {id(outcome): outcome for outcome in (*self._range, *self._small)}
        smallest = sorted(found.values(), key=by_peak)[:_MOST_LEAST]
        moved = [self._emitted(smallest[0].program, part) for part in self._other_parts]
        return sorted({*smallest, *moved}, key=by_peak)

    @functools.cached_property
    def _small(self) -> list[TimedOutcome]:
        """Outcomes of small replayed peak."""
        return [self._emitted(candidate.program) for candidate in self._search.small_ones(_MOST_LEAST)]

    def near_misses(self, best: Outcome, peak_bytes: int) -> Sequence[Outcome]:
        """None: the prediction tells schedules apart well enough."""
        return ()

    @functools.cached_property
    def _range(self) -> list[TimedOutcome]:
        """The whole range, from everything kept to next to nothing; and what people keep by hand."""
        return [self.plain, *self._by_hand(), *(self._at(point) for shape in _SHAPES for point in self._falling(shape))]

    def _falling(self, shape: SearchPoint) -> list[SearchPoint]:
        """A shape at the prices worth a prediction: of those that give the same schedule the last, and none at which
        recomputation itself takes more bytes than a lower price does."""
        found: dict[Candidate, SearchPoint] = {}
        least = np.inf
        for point in (dataclasses.replace(shape, price=price) for price in self._search.prices):
            candidate = self._search.candidate(point)
            if candidate.peak_bytes <= least:
                found[candidate], least = point, candidate.peak_bytes
        return list(found.values())

    def _by_hand(self) -> list[TimedOutcome]:
        return list(map(self._predicted_by_hand, self._programs_by_hand))

    def _predicted_by_hand(self, program: ScheduledProgram) -> TimedOutcome:
        return self._between(self._blocks, self._predicted(program))

    @functools.cached_property
    def _programs_by_hand(self) -> list[ScheduledProgram]:
        """Checkpoints around every block, as `jax.checkpoint` runs them: a barrier where each block begins again."""
        return [self._keeping_by_hand(policy) for policy in POLICIES] if self._number_of_blocks else []

    def _keeping_by_hand(self, policy: Policy) -> ScheduledProgram:
        graph = self._problem.graph
        steps, start = assemble_parts(graph, kept_by_hand(self._problem.joint, graph, self._blocks, policy))
        barriers = barriers_between(graph, steps, start, self._blocks)
        return schedule_program(graph, steps, backward_start=start, barriers=barriers, barrier_scope="sources")

    def _approach_by_hand(self, peak_bytes: int) -> None:
        """Predicts what people keep by hand, the cheapest first, until something fits; not what will not."""
        replayed = [(replay(self._problem.graph, program.steps), program) for program in self._programs_by_hand]
        for timeline, program in sorted(replayed, key=lambda pair: pair[0].cost):
            should_fit = self._expected_bytes(timeline.peak_bytes, self._at_point) <= peak_bytes
            if should_fit and self._predicted_by_hand(program).peak_bytes <= peak_bytes:
                return

    def _approach(self, shapes: Sequence[SearchPoint], peak_bytes: int) -> None:
        """Predicts schedules of some shapes on both sides of the lowest price at which each fits."""
        for shape in shapes:
            for _ in range(_MOST_STEPS):
                unknown = [point for point in self._around(shape, peak_bytes) if point not in self._at_point]
                if not unknown:
                    break
                self._at(unknown[0])

    def _around(self, shape: SearchPoint, peak_bytes: int) -> list[SearchPoint]:
        """The lowest price at which a shape should fit, and the next lower one; the highest that is of use where it
        should fit at none."""
        points = self._falling(shape)
        enough = next((k for k, point in enumerate(points) if self._expected(point) <= peak_bytes), None)
        if not enough:
            return points[:1] if enough == 0 else points[-1:]
        too_low, fits = points[enough - 1 : enough + 1]
        for _ in range(_HALVINGS):
            middle = dataclasses.replace(shape, price=float(np.sqrt(too_low.price * fits.price)))
            too_low, fits = (too_low, middle) if self._expected(middle) <= peak_bytes else (middle, fits)
        return [fits, too_low]

    def _expected(self, point: SearchPoint) -> float:
        """The peak that a schedule is, or should be, predicted to have: by those of its shape, where two are known."""
        if point in self._at_point:
            return self._at_point[point].peak_bytes
        own = [known for known in self._at_point if dataclasses.replace(known, price=point.price) == point]
        return self._expected_bytes(self._search.candidate(point).peak_bytes, own if len(own) > 1 else self._at_point)

    def _expected_bytes(self, replayed_bytes: int, points: Iterable[SearchPoint]) -> float:
        """The predicted peak of what is replayed with some bytes: as far from it as at those points."""
        known = [(self._search.candidate(point).peak_bytes, self._at_point[point].peak_bytes) for point in points]
        known = known or [(self._search.plain.peak_bytes, self.plain.peak_bytes)]
        replayed, predicted = np.asarray(sorted(dict(sorted(known, reverse=True)).items())).T
        return replayed_bytes + float(np.interp(replayed_bytes, replayed, predicted - replayed))

    def _released(self, best: TimedOutcome) -> list[SearchPoint]:
        """What the backward has read by the time of the peak may as well be kept: it is live then in any case."""
        after = best.timeline.schedule[best.timeline.peak_step :]
        backward = after[self._problem.graph.backward[after]]
        if best.program.is_in_order or not backward.size:
            return []
        return [dataclasses.replace(shape, peak_node=int(backward[0])) for shape in _SHAPES]

    def _mix(self, peak_bytes: int) -> None:
        """Equal blocks change at one price, all of them: predicts, between two that are known, schedules that keep as
        much as the larger one from some node on; as many blocks as fit, and a part of one more."""
        pair = likeliest_pair(self.made, peak_bytes)
        if pair:
            graph = self._problem.graph
            differing = np.unique(graph.producer[np.logical_xor(*self._kept_by(pair))])
            span = self._narrowed((-1, graph.num_nodes), self._block_starts, pair, peak_bytes)
            self._narrowed(span, differing, pair, peak_bytes)

    def _narrowed(
        self, span: tuple[int, int], turns: np.ndarray, pair: tuple[TimedOutcome, TimedOutcome], peak_bytes: int
    ) -> tuple[int, int]:
        """Two of the turns, or the ends of the span: the latest that is too early to fit, and one that is not."""
        too_early, fits = span
        for _ in range(_MOST_MIXTURES):
            between = turns[(too_early < turns) & (turns < fits)]
            if not between.size:
                break
            middle = int(between[between.size // 2])
            is_small = self._turning(middle, *pair).peak_bytes <= peak_bytes
            too_early, fits = (too_early, middle) if is_small else (middle, fits)
        return too_early, fits

    def _turning(self, node: int, smaller: TimedOutcome, larger: TimedOutcome) -> TimedOutcome:
        """Keeps as much as the larger one from a node on, with barriers where the smaller one has them."""
        graph = self._problem.graph
        little, much = self._kept_by((smaller, larger))
        steps, start = assemble_parts(graph, np.where(graph.producer >= node, much, little))
        return self._emitted(schedule_program(graph, steps, backward_start=start), self._parts_of.get(id(smaller)))

    def _kept_by(self, pair: tuple[TimedOutcome, TimedOutcome]) -> list[np.ndarray]:
        """[V] bool, of each: what the forward leaves to the backward."""
        return [outcome.program.is_saved(self._problem.graph.num_values) for outcome in pair]

    def _too_large(self, best: TimedOutcome, peak_bytes: int) -> TimedOutcome | None:
        """The smallest of what is faster than the best and takes too many bytes."""
        faster = [outcome for outcome in self.made if peak_bytes < outcome.peak_bytes and outcome.cost < best.cost]
        return min(faster, key=by_peak, default=None)

    def _move_barriers(self, best: TimedOutcome, peak_bytes: int) -> None:
        """Predicts the best, and what is faster and just too large, with barriers in other places."""
        too_large = self._too_large(best, peak_bytes) or best
        for part in self._other_parts:
            self._emitted(best.program, part)
            if too_large.peak_bytes <= _NEARLY * peak_bytes:
                self._emitted(too_large.program, part)

    @functools.cached_property
    def _other_parts(self) -> list[np.ndarray]:
        parts = [self._structure.parts(int(factor * self._parts)) for factor in _OTHER_PARTS]
        return [*parts, self._blocks] if self._number_of_blocks else parts

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
        return self._between(
            part, self._predicted(dataclasses.replace(program, barriers=behind, barrier_scope="sources"))
        )

    def _between(self, part: np.ndarray, outcome: TimedOutcome) -> TimedOutcome:
        """Remembers between which parts an outcome has its barriers."""
        self._parts_of.setdefault(id(outcome), part)
        return outcome

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

    @functools.cached_property
    def _block_starts(self) -> np.ndarray:
        """[B] the first node of each block."""
        number, first = np.unique(self._blocks, return_index=True)
        return first[number >= 0]

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
        return seconds_by_equation(problem.joint.jaxpr, self.device, problem.known)

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


def likeliest_pair(outcomes: Sequence[TimedOutcome], peak_bytes: int) -> tuple[TimedOutcome, TimedOutcome] | None:
    """Of what fits and what takes too many bytes and is faster, the two between which a mixture that just fits should
    be the fastest, were its time to change with its bytes; None where nothing is faster."""

    def seconds(pair: tuple[TimedOutcome, TimedOutcome]) -> float:
        smaller, larger = pair
        share = (peak_bytes - smaller.peak_bytes) / (larger.peak_bytes - smaller.peak_bytes)
        return smaller.cost + share * (larger.cost - smaller.cost)

    fitting = [outcome for outcome in outcomes if outcome.peak_bytes <= peak_bytes]
    too_large = [outcome for outcome in outcomes if outcome.peak_bytes > peak_bytes]
    pairs = ((small, large) for small in fitting for large in too_large if large.cost < small.cost)
    return min(pairs, key=seconds, default=None)


def by_peak(outcome: TimedOutcome) -> tuple[int, float]:
    """To sort by: the smallest peak first."""
    return outcome.peak_bytes, outcome.cost
