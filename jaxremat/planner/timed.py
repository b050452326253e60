"""Schedules judged by what is compiled: the time and the peak of the emitted program under the target's fusion.

Where element-wise work disappears in the kernels that read it, the replay of a schedule says little about its time:
what counts is which buffers are written and read, and barriers decide that as much as recomputation does. So candidates
are made by the minimum cut that knows what the plain program's kernels take, and by what people keep by hand; each is
emitted, fused by the compiler's rules, and timed kernel by kernel. The answer for a budget is the fastest of those
whose predicted peak fits.

A prediction takes as long as thirty cuts do. So a few schedules are predicted along the whole range of prices, more of
them beside those on the convex front of bytes and seconds: of the same ones whatever the budget is, those that may be
the fastest that fits, by what is known of their neighbours. So a larger budget is never answered with more time. What
depends on the budget beside are mixtures of the two on the front between which it lies.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import numpy as np

from jaxremat.backends.devices import Device
from jaxremat.base.compat import Var
from jaxremat.base.hulls import lower_hull
from jaxremat.cost.kernels import seconds_again, seconds_by_equation
from jaxremat.graph.replay import Timeline
from jaxremat.graph.scheduled import ScheduledProgram, in_order, schedule_program
from jaxremat.planner.by_hand import POLICIES, Policy, blocks_of, kept_by_hand
from jaxremat.planner.contract import TOLD_APART, Outcome, Traits
from jaxremat.planner.decision import Form, form_of
from jaxremat.planner.problem import Problem, pose
from jaxremat.planner.repeats import repeated_layers
from jaxremat.planner.schedules import SchedulePlanner, apart
from jaxremat.solvers.mincut.assemble import assemble_parts
from jaxremat.solvers.mincut.barriers import barriers_between, before_what_ends
from jaxremat.solvers.mincut.boundary import SearchPoint
from jaxremat.solvers.mincut.layers import layers_of
from jaxremat.solvers.mincut.search import Candidate, Search
from jaxremat.solvers.mincut.structure import Structure
from jaxremat.trace.primal import Primal
from jaxremat.trace.round_trips import LOSSLESS

PEAK_DOUBT = 0.04  # as far as most predictions for an H200 are off: prediction.md; benchmarks/doubt.py
_HAND_DOUBT = 1.06  # of times: on an H200, a ConvNeXt by hand predicted at 1.054 of the fastest took .964 of it: gpu.md
_SEGMENTS = (1, 16)  # one, and about one per layer of common depths; benchmarks/constants.py
_OTHER_PARTS = (0.5, 2.0)  # half and twice as many barriers; benchmarks/constants.py
_HALVINGS = 5  # of the ratio between two prices: to 4 %; to 15, a GPT in .7 takes 15.7 % where 6.1 would do
_ROUNDS = 2  # of finer schedules beside those on the front; benchmarks/constants.py
_MOST_LEAST = 12  # each is emitted and fused; benchmarks/constants.py
_SURER = 1.33  # of the smallest: a LLaMA's least was predicted at 852 MiB, and took 1121; by hand 946, and 942
_ROOM_FOR_GAPS = (1, 2)  # times what does not fit; with the first alone, skips took 19 % in .7, and 12 in .65
_MOST_MIXTURES = 3  # where blocks begin, inside of one (to a 64th), and of what is kept; benchmarks/constants.py


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
        """The predicted peak without gaps between buffers, which small things change: this planner searches by that."""
        return self.timeline.peak_bytes - self.timeline.gap_bytes

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
        self.device = device
        self._made: dict[bytes, TimedOutcome] = {}
        self._at_point: dict[SearchPoint, TimedOutcome] = {}
        self._cheapest_of_peak: dict[int, Candidate] = {}
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

    @property
    def whole_range(self) -> Sequence[TimedOutcome]:
        """Outcomes from everything kept to next to nothing, and every other one so far."""
        _ = self._range
        return self.made

    def fit(self, replayed_bytes: int) -> TimedOutcome:
        """The fastest outcome whose predicted peak, gaps included, is within a number of bytes, or the smallest one."""
        self._look_near(replayed_bytes)
        for times in _ROOM_FOR_GAPS:
            best = fastest(self.made, replayed_bytes)
            if best and best.peak_bytes > replayed_bytes:
                self._look_near(replayed_bytes - times * (best.peak_bytes - replayed_bytes))
        found = fastest_within(self.made, replayed_bytes)
        return found if found.peak_bytes <= replayed_bytes else fastest_within(self.least(), replayed_bytes)

    def _look_near(self, replayed_bytes: int) -> None:
        """Predicts what may be the fastest within a number of bytes, gaps aside."""
        known = self._known(replayed_bytes)
        smaller = (likeliest_pair(known, replayed_bytes) or ())[:1]
        known = [*known, *self._moved(smaller, self._places[1:])]
        self._mix(likeliest_pair(known, replayed_bytes), replayed_bytes)
        wanted = _Wanted.within(replayed_bytes, self.made)
        others = [each for each in convex_front(known) if wanted.is_below(each, each)]
        known = [*known, *self._moved(others, self._places[1:])]
        likeliest = likeliest_pair(known, replayed_bytes)
        self._mix(likeliest, replayed_bytes)
        self._mix(likeliest_pair(known, likeliest[1].replayed_bytes) if likeliest else None, replayed_bytes)
        self._fill(replayed_bytes)

    def leaving(self, saved_bytes: int) -> TimedOutcome:
        """The cheapest outcome whose forward leaves at most so many bytes to the backward, inputs aside."""
        return self._emitted(SchedulePlanner(self.primal, self.device, self.storages).leaving(saved_bytes).program)

    def least(self) -> Sequence[TimedOutcome]:
        """Outcomes of small predicted peak, no two alike, the smallest first; before them the smallest of what people
        keep by hand, where it may be smaller: a prediction is surest of what runs as blocks do."""
        return self._least

    @functools.cached_property
    def _least(self) -> Sequence[TimedOutcome]:
        found = sorted(dict.fromkeys([*self._range, *self._small]), key=by_peak)
        smallest = apart(found, lambda outcome: outcome.replayed_bytes)[:_MOST_LEAST]
        moved = [self._emitted(smallest[0].program, part) for part in (*self._places, *self._other_parts)]
        enough = min(_SURER * smallest[0].replayed_bytes, self.plain.replayed_bytes)
        by_hand = [each for each in sorted(self._by_hand, key=by_peak)[:1] if each.replayed_bytes < enough]
        others = [outcome for outcome in dict.fromkeys([*smallest, *moved]) if outcome not in by_hand]
        return [*by_hand, *sorted(others, key=by_peak)]

    @functools.cached_property
    def _small(self) -> list[TimedOutcome]:
        """Outcomes of small replayed peak, the smallest first, up to one that is predicted to take no less than what is
        known without a search: more are larger still."""
        known = [self.plain, *(self._around_blocks if self._has_names else ())]
        enough = min(outcome.replayed_bytes for outcome in known)
        place = self._blocks if self._has_names else self._other_parts[0]
        found: list[TimedOutcome] = []
        for candidate in self._search.small_ones(_MOST_LEAST):
            found.append(self._emitted(candidate.without_barriers, place))
            if found[-1].replayed_bytes >= enough:
                break
        return found

    def near_misses(self, best: Outcome, cost: float, peak_bytes: int) -> Sequence[Outcome]:
        """What people keep by hand, and what would fit but for gaps between buffers, the fastest first, where it may be
        faster and fit all the same: what compilers make of barriers, and where buffers lie, is told by what is
        compiled."""
        by_hand = [each for each in self._by_hand if each.peak_bytes <= (1 + PEAK_DOUBT) * peak_bytes]
        may_be_faster = [each for each in by_hand if each is not best and each.cost < _HAND_DOUBT * cost]
        gapped = [each for each in self.made if each.replayed_bytes <= peak_bytes < each.peak_bytes]
        may_be_faster += [each for each in gapped if TOLD_APART * each.cost < cost]
        return sorted(dict.fromkeys(may_be_faster), key=lambda each: each.cost)

    @functools.cached_property
    def _range(self) -> Sequence[TimedOutcome]:
        """The whole range, from everything kept to next to nothing, what people keep by hand, and where no module is
        named what a search for small peaks does: the same whatever is asked for. Those on the front have barriers in
        other places too."""
        known = self._near(None)
        moved = self._moved(convex_front(known), self._places[1:])
        return sorted(dict.fromkeys([*known, *moved]), key=by_peak)

    def _near(self, peak_bytes: int | None) -> list[TimedOutcome]:
        """The range with barriers in their first places; of what is between two prices, all that can be the fastest
        within a number of bytes."""
        at = {point: self._at(point) for points in self._falling for point in _ends(points)}
        by_hand = self._by_hand if peak_bytes is None else [*self._in_blocks, *self._in_layers]
        others = () if self._has_names else self._small
        known = [self.plain, *by_hand, *others, *at.values()]
        for _ in range(_ROUNDS):
            wanted = _Wanted.within(peak_bytes, known)
            finer = {point: self._at(point) for point in self._beside(at, convex_front(known), wanted)}
            at |= finer
            known += finer.values()
        return [*known, *self._moved(convex_front(known), self._places[:1])]

    def _moved(self, outcomes: Iterable[TimedOutcome], places: Sequence[np.ndarray]) -> list[TimedOutcome]:
        """Those of some schedules that repeat something, with barriers in some places."""
        repeating = [outcome for outcome in outcomes if not outcome.program.is_in_order]
        return [self._emitted(outcome.program, part) for outcome in repeating for part in places]

    @functools.cached_property
    def _falling(self) -> list[list[SearchPoint]]:
        """Of each shape, the prices worth a prediction: of those that give the same schedule one, and none at which
        recomputation itself takes more bytes than a lower price does."""
        return [list(self._falling_of(SearchPoint(0.0, segments))) for segments in _SEGMENTS]

    def _falling_of(self, shape: SearchPoint) -> Iterator[SearchPoint]:
        least = np.inf
        points = [dataclasses.replace(shape, price=price) for price in self._search.prices]
        for low, high in itertools.pairwise([*points, points[-1]]):
            for point in self._finer(low, high, _HALVINGS):
                peak_bytes = self._search.candidate(point).peak_bytes
                if peak_bytes < least:
                    least = peak_bytes
                    yield point

    def _finer(self, low: SearchPoint, high: SearchPoint, halvings: int) -> list[SearchPoint]:
        """From a price up to a higher one, that one aside: a cut that is the cheapest at both is so between them."""
        if not halvings or self._search.candidate(low) is self._search.candidate(high):
            return [low]
        middle = dataclasses.replace(low, price=float(np.sqrt(low.price * high.price)))
        return [*self._finer(low, middle, halvings - 1), *self._finer(middle, high, halvings - 1)]

    def _beside(
        self, at: Mapping[SearchPoint, TimedOutcome], front: Sequence[TimedOutcome], wanted: _Wanted
    ) -> Iterator[SearchPoint]:
        """Of each shape, the points half way between those that are known, where one of the two is on the front."""
        for points in self._falling:
            known = [place for place, point in enumerate(points) if point in at]
            for low, high in itertools.pairwise(known):
                larger, smaller = at[points[low]], at[points[high]]
                is_wanted = wanted.may_lie_between(larger, smaller)
                if high > low + 1 and is_wanted and (larger in front or smaller in front):
                    yield points[(low + high) // 2]

    @property
    def _by_hand(self) -> list[TimedOutcome]:
        """What people keep by hand who put checkpoints around blocks, and around layers."""
        return [*self._around_blocks, *self._in_layers]

    @functools.cached_property
    def _around_blocks(self) -> list[TimedOutcome]:
        """Checkpoints around blocks; the smallest also behind kernels, as whatever is on the front."""
        smallest = sorted(self._in_blocks, key=by_peak)[:1]
        return [*self._in_blocks, *(self._emitted(outcome.program, self._blocks) for outcome in smallest)]

    @functools.cached_property
    def _in_layers(self) -> list[TimedOutcome]:
        """Checkpoints around layers, with what they read behind kernels."""
        layers = self._search.in_layers(self._problem.contracts)
        return [self._emitted(layer.without_barriers, self._layers) for layer in layers]

    @functools.cached_property
    def _in_blocks(self) -> list[TimedOutcome]:
        """Checkpoints around blocks, with barriers where `jax.checkpoint` has them; where modules have no names, also
        around layers that repeat."""
        problem = self._problem
        repeated = [] if self._has_names else repeated_layers(problem.joint, self._structure, problem.contracts)
        each = {block.tobytes(): block for block in (self._blocks, *repeated) if (block >= 0).any()}
        return [self._keeping_by_hand(policy, block) for block in each.values() for policy in POLICIES]

    def _keeping_by_hand(self, policy: Policy, block: np.ndarray) -> TimedOutcome:
        """As `jax.checkpoint` around every block runs them: a barrier where each block begins again."""
        graph = self._problem.graph
        steps, start = assemble_parts(graph, kept_by_hand(self._problem.joint, graph, block, policy))
        again = barriers_between(graph, steps, start, block)
        barriers = sorted({before_what_ends(graph, steps, barrier) for barrier in again})
        program = schedule_program(graph, steps, backward_start=start, barriers=barriers, barrier_scope="sources")
        return self._between(block, self._predicted(program))

    def _known(self, peak_bytes: int) -> Sequence[TimedOutcome]:
        """What is near a number of bytes, and where all of that takes too many the whole range and what is small: the
        highest prices recompute so much at once that less may be live between them."""
        near = self._near(peak_bytes)
        is_enough = min(near, key=by_peak).replayed_bytes <= peak_bytes
        return near if is_enough else [*near, *self._range, *self._small]

    def _mix(self, pair: tuple[TimedOutcome, TimedOutcome] | None, peak_bytes: int) -> None:
        """Equal blocks change at one price, all of them: predicts, between two that are known, schedules that keep as
        much as the larger one from some node on; as many blocks as fit, and a part of one more. Even of two that take
        more: what keeps a part of a layer at either end may take less than both."""
        if pair:
            graph = self._problem.graph
            differing = np.unique(graph.producer[np.logical_xor(*self._kept_by(pair))])
            span = self._narrowed((-1, graph.num_nodes), self._block_starts, pair, peak_bytes)
            self._narrowed(span, differing, pair, peak_bytes)

    def _fill(self, peak_bytes: int) -> None:
        """Mixtures turn in the order of the program, and leave bytes where the next value is too large: predicts the
        smaller of the likeliest pair, and then the fastest that fits, with more of what the larger one keeps."""
        pair = likeliest_pair(self.made, peak_bytes)
        if pair:
            self._filled(pair[0], pair[1], peak_bytes)
            self._filled(fastest(self.made, peak_bytes) or pair[0], pair[1], peak_bytes)

    def _filled(self, smaller: TimedOutcome, larger: TimedOutcome, peak_bytes: int) -> None:
        """Predicts as much more of what a larger one keeps as fits, what saves most for its bytes first: by false
        position, peaks growing with what is kept."""
        little, much = self._kept_by((smaller, larger))
        more = self._worth_keeping(much & ~little, peak_bytes - smaller.replayed_bytes)
        kept_bytes = np.append(0, np.cumsum(self._problem.graph.value_bytes[more]))
        fits, too_many = 0, more.size + 1
        least, most = smaller.replayed_bytes, larger.replayed_bytes
        for _ in range(_MOST_MIXTURES):
            between = kept_bytes[fits : too_many + 1]
            wanted = np.interp(peak_bytes, (least, most), (between[0], between[-1]))
            number = min(max(fits + 1, int(np.searchsorted(kept_bytes, wanted, side="right")) - 1), too_many - 1)
            if number == fits:
                break
            filled = self._keeping(little | np.isin(np.arange(little.size), more[:number]), smaller)
            if filled.replayed_bytes <= peak_bytes:
                fits, least = number, filled.replayed_bytes
            else:
                too_many, most = number, filled.replayed_bytes

    def _worth_keeping(self, values: np.ndarray, most_bytes: int) -> np.ndarray:
        """Of some values ([V] bool) of so many bytes at most, those that cost more to make again than to keep, the one
        that saves most for its bytes first, of equal ones the last, as in mixtures."""
        graph, (run_seconds, keep_seconds) = self._problem.graph, self._run_and_keep_seconds
        saved = run_seconds[graph.producer] - keep_seconds
        worth = np.flatnonzero(values & (saved > 0) & (graph.value_bytes > 0) & (graph.value_bytes <= most_bytes))
        return worth[np.lexsort((-worth, -saved[worth] / graph.value_bytes[worth]))]

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
            is_small = self._turning(middle, *pair).replayed_bytes <= peak_bytes
            too_early, fits = (too_early, middle) if is_small else (middle, fits)
        return too_early, fits

    def _turning(self, node: int, smaller: TimedOutcome, larger: TimedOutcome) -> TimedOutcome:
        """Keeps as much as the larger one from a node on, with barriers where the smaller one has them."""
        little, much = self._kept_by((smaller, larger))
        return self._keeping(np.where(self._problem.graph.producer >= node, much, little), smaller)

    def _keeping(self, kept: np.ndarray, like: TimedOutcome) -> TimedOutcome:
        """What keeps some values ([V] bool) for the backward, with barriers where another one has them."""
        graph = self._problem.graph
        steps, start = assemble_parts(graph, kept)
        return self._emitted(schedule_program(graph, steps, backward_start=start), self._parts_of.get(id(like)))

    def _kept_by(self, pair: tuple[TimedOutcome, TimedOutcome]) -> list[np.ndarray]:
        """[V] bool, of each: what the forward leaves to the backward."""
        return [outcome.program.is_saved(self._problem.graph.num_values) for outcome in pair]

    @functools.cached_property
    def _places(self) -> list[np.ndarray]:
        """[N] each, parts of the program before which barriers may stand; the first are those that are tried first."""
        usual = self._structure.parts(self._parts)
        return [self._blocks if self._number_of_blocks else self._other_parts[0], usual]

    @functools.cached_property
    def _other_parts(self) -> list[np.ndarray]:
        return [self._structure.parts(int(factor * self._parts)) for factor in _OTHER_PARTS]

    def _at(self, point: SearchPoint) -> TimedOutcome:
        if point not in self._at_point:
            self._at_point[point] = self._emitted(self._cheapest_like(point).without_barriers, self._places[0])
        return self._at_point[point]

    def _cheapest_like(self, point: SearchPoint) -> Candidate:
        """Of what was predicted, and what the shapes give at a price, the cheapest with the replayed peak of what a
        point gives: it is predicted to be the fastest of those, and their peaks to be nearly the same."""
        peak_bytes = self._search.candidate(point).peak_bytes
        shapes = (SearchPoint(point.price, segments) for segments in _SEGMENTS)
        alike = [each for each in map(self._search.candidate, shapes) if each.peak_bytes == peak_bytes]
        known = [self._cheapest_of_peak[peak_bytes]] if peak_bytes in self._cheapest_of_peak else []
        self._cheapest_of_peak[peak_bytes] = cheapest = min([*known, *alike], key=lambda each: each.cost)
        return cheapest

    def _emitted(self, program: ScheduledProgram, part: np.ndarray | None = None) -> TimedOutcome:
        """A schedule with a barrier before each part of the forward that runs again."""
        graph = self._problem.graph
        part = self._places[-1] if part is None else part
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
        """[N] the block of each forward node, -1 outside of them: numbered modules, or else what memory tells apart."""
        return self._named_blocks if self._has_names else self._structure.blocks

    @functools.cached_property
    def _named_blocks(self) -> np.ndarray:
        return blocks_of(self._problem.joint)

    @property
    def _has_names(self) -> bool:
        return bool((self._named_blocks >= 0).any())

    @functools.cached_property
    def _layers(self) -> np.ndarray:
        """[N] the layer of each forward node, -1 where there are none."""
        return layers_of(self._problem.graph, self._problem.contracts)

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
        return Search(self._problem.graph, *self._run_and_keep_seconds)

    @functools.cached_property
    def _run_and_keep_seconds(self) -> tuple[np.ndarray, np.ndarray]:
        """[N] what making each node again is taken to cost; [V] what keeping each value does."""
        problem, graph = self._problem, self._problem.graph
        seconds, written = self._kernels
        run_seconds = seconds_again(problem.joint.jaxpr, seconds, written, problem.run_seconds)
        made = [var for eqn in problem.joint.eqns for var in eqn.outvars]
        extra = 2 * graph.value_bytes / self.device.bandwidth_bytes_per_second + self.device.launch_seconds
        return run_seconds, graph.keep_costs + np.where([var in written for var in made], 0, extra)


@dataclasses.dataclass(frozen=True)
class _Wanted:
    """What may be the fastest within a number of bytes, beside what is known: anything below two bounds, and what would
    be mixed in the place of the two outcomes that are.

    Between two prices lie schedules that take no less time than that of the lower price does, and no fewer bytes than
    that of the higher; nor does a schedule whose barriers stand behind kernels take much less of either with barriers
    in other places: what is mixed has those of the smaller of two, which is tried with others in any case. Both hold as
    far as predictions tell schedules apart.
    """

    most_bytes: float
    most_seconds: float
    mixed: Collection[TimedOutcome] = ()

    @staticmethod
    def within(peak_bytes: int | None, known: Sequence[TimedOutcome]) -> _Wanted:
        """What may be the fastest within a number of bytes; anything where that is None."""
        if peak_bytes is None:
            return _ANYTHING
        best = fastest(known, peak_bytes)
        most_seconds = TOLD_APART * best.cost if best else np.inf
        return _Wanted((1 + PEAK_DOUBT) * peak_bytes, most_seconds, likeliest_pair(known, peak_bytes) or ())

    def may_lie_between(self, larger: TimedOutcome, smaller: TimedOutcome) -> bool:
        """Whether something between two outcomes may be below the bounds, or take the place of what is mixed."""
        return self.is_below(larger, smaller) or larger in self.mixed or smaller in self.mixed

    def is_below(self, larger: TimedOutcome, smaller: TimedOutcome) -> bool:
        """Whether something between two outcomes may be below the bounds."""
        return larger.cost < self.most_seconds and smaller.replayed_bytes <= self.most_bytes


_ANYTHING = _Wanted(np.inf, np.inf)


def fastest(outcomes: Sequence[TimedOutcome], peak_bytes: int) -> TimedOutcome | None:
    """The fastest of those whose predicted peak, gaps aside, is within a number of bytes, None where there is none."""
    within = [outcome for outcome in outcomes if outcome.replayed_bytes <= peak_bytes]
    return min(within, key=lambda outcome: (outcome.cost, outcome.replayed_bytes), default=None)


def fastest_within(outcomes: Sequence[TimedOutcome], peak_bytes: int) -> TimedOutcome:
    """The fastest of those whose predicted peak, gaps between buffers included, is within a number of bytes, or the one
    with the smallest peak."""
    within = [outcome for outcome in outcomes if outcome.peak_bytes <= peak_bytes]
    return fastest(within, peak_bytes) or min(outcomes, key=lambda outcome: (outcome.peak_bytes, outcome.cost))


def likeliest_pair(outcomes: Collection[TimedOutcome], peak_bytes: int) -> tuple[TimedOutcome, TimedOutcome] | None:
    """Of what fits and what takes too many bytes and is faster, the two between which a mixture that just fits should
    be the fastest, were its time to change with its bytes; None where nothing is faster."""
    edges = itertools.pairwise(convex_front(outcomes))
    return next((pair for pair in edges if pair[0].replayed_bytes <= peak_bytes < pair[1].replayed_bytes), None)


def convex_front(outcomes: Collection[TimedOutcome]) -> list[TimedOutcome]:
    """Of outcomes, the smallest first: those below which no mixture of others would lie."""
    return lower_hull(outcomes, lambda outcome: outcome.replayed_bytes, lambda outcome: outcome.cost)


def _ends(points: Sequence[SearchPoint]) -> list[SearchPoint]:
    """The first, the last, and the one between them."""
    return [points[0], points[len(points) // 2], points[-1]]


def by_peak(outcome: TimedOutcome) -> tuple[int, float]:
    """To sort by: the smallest peak first, gaps aside."""
    return outcome.replayed_bytes, outcome.cost
