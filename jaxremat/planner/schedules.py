"""Schedules for one program on one device: loops and flat schedule together, for any budget.

One setting, the price of a byte in seconds, rules both: at a price every loop takes its cheapest decision, and what
remains is a flat program for the search. The smallest price at which the program fits is the cheapest plan. Where loops
can take in what is computed of their results, that is another program, which is planned beside.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from jaxremat.backends.devices import Device
from jaxremat.chunk.rewriting.epilogue import with_epilogues_inside
from jaxremat.cost.bodies import KnownBodies
from jaxremat.graph.replay import Timeline
from jaxremat.graph.scheduled import BARRIER_SCOPES, ScheduledProgram
from jaxremat.loops.decide import Loops, in_one_piece
from jaxremat.loops.decision import LoopDecision
from jaxremat.planner.contract import Outcome, Traits, cheapest_within, fastest_bytes, left_behind
from jaxremat.planner.decision import Form, form_of
from jaxremat.planner.prediction import is_below_model_threshold
from jaxremat.planner.problem import Problem, pose
from jaxremat.solvers.mincut.barriers import barriers_at_turns
from jaxremat.solvers.mincut.search import Candidate, Search
from jaxremat.trace.primal import Primal
from jaxremat.trace.round_trips import LOSSLESS

LOOP_PRICES = np.logspace(-2, 4, 25)  # of the mean price of a byte: four per decade; benchmarks/constants.py
_MOST_PRICES = 6  # tried for one limit: each is a program that is searched; benchmarks/constants.py
_HALVINGS = 12  # of the ratio between two prices, a million: to 0.4 %; benchmarks/constants.py
_CLOSE = 0.002  # of the limit: less than a prediction can tell; benchmarks/constants.py
_MOST_LEAST = 24  # predicted, some of them compiled; benchmarks/constants.py
_MOST_LOOP_DECISIONS = 3  # in which one cut goes lowest, each then searched to the end; benchmarks/constants.py
MOST_IN_CHECKPOINTS = 2  # the number of segments is the dial: the best one and its neighbour; benchmarks/constants.py
APART = 1.005  # half a per cent: less than a prediction can tell; benchmarks/constants.py


@dataclasses.dataclass(frozen=True, eq=False)
class ScheduleOutcome:
    """A schedule of a problem, with its replayed numbers.

    Attributes:
      problem: the program with its loops decided.
      program: its schedule.
      replayed_bytes: peak of the replay.
      cost: of the replay, in seconds.
    """

    problem: Problem
    program: ScheduledProgram
    replayed_bytes: int
    cost: float

    @property
    def form(self) -> Form:
        return form_of(self.problem, self.program)

    @functools.cached_property
    def timeline(self) -> Timeline:
        """The predicted timeline of the emitted program."""
        return self.problem.predicted(self.program)

    @property
    def peak_bytes(self) -> int:
        """The predicted peak."""
        return self.timeline.peak_bytes

    def at_cost(self, seconds: float) -> ScheduleOutcome:
        """The same schedule at another cost."""
        return dataclasses.replace(self, cost=seconds)


class SchedulePlanner:
    """Schedules by the default search.

    Args:
      primal: the program.
      device: what its costs and bytes are for.
      storages: forms in which values may wait for the backward.
    """

    traits = Traits()

    def __init__(self, primal: Primal, device: Device, storages: tuple[str, ...] = LOSSLESS) -> None:
        self.primal = primal
        self.device = device
        self.storages = storages
        self._known = KnownBodies()
        self._searches: dict[tuple[LoopDecision, ...], tuple[Problem, Search]] = {}
        self._outcomes: dict[tuple[Problem, bytes, str], ScheduleOutcome] = {}
        self._fits: dict[int, ScheduleOutcome] = {}

    @functools.cached_property
    def plain(self) -> ScheduleOutcome:
        """The program as it stands."""
        problem, search = self._posed(())
        return self._outcome(problem, search.plain)

    def fit(self, replayed_bytes: int) -> ScheduleOutcome:
        """The cheapest outcome whose replayed peak is within a number of bytes, or the one with the smallest peak."""
        aim = min(replayed_bytes, self.fastest_bytes)
        if self.plain.replayed_bytes <= aim:
            return self.plain
        if aim not in self._fits:
            found = cheapest_within([planner._fit(aim) for planner in self._both], aim)
            self._fits[aim] = self._followed_closely(found) if self._follows else found
        return self._fits[aim]

    @functools.cached_property
    def fastest_bytes(self) -> int:
        """The replayed peak above which no outcome is faster: where memory has to be made ready, a byte is worth
        computing again as long as that takes less."""
        rate = self.device.first_touch_seconds_per_byte
        return fastest_bytes(self.plain, self._at_price(rate))

    @functools.cached_property
    def _follows(self) -> bool:
        """Whether schedules are followed closely: left alone, a compiler that runs first what is ready first holds more
        at once, and takes no less time for it (`benchmarks/order.py`). In toy programs buffers cost more than order."""
        problem, _ = self._posed(())
        is_toy = is_below_model_threshold(problem.joint, problem.graph, self.device)
        return self.device.backend.breadth_first and not is_toy

    def _at_price(self, price: float) -> list[ScheduleOutcome]:
        """Outcomes with loops, and what is outside of them, as one price decides."""
        problem, search = self._posed(self._decisions(price) if self._loops.found else ())
        return [self._outcome(problem, found) for found in search.at_price(price)]

    def _fit(self, replayed_bytes: int) -> ScheduleOutcome:
        if not self._loops.found:
            return self._fit_at(None, replayed_bytes)
        lowest, highest = self._loop_prices[0], self._loop_prices[-1]
        if self._fits_quickly(lowest, replayed_bytes):
            return self._fit_at(lowest, replayed_bytes)
        within = list(self._approached(lowest, highest, replayed_bytes))
        return min(within, key=_by_cost) if within else self._fit_deeply(replayed_bytes)

    def least(self) -> list[ScheduleOutcome]:
        """Outcomes of small replayed peak, no two alike, with barriers of every scope."""
        return self._least

    @functools.cached_property
    def _least(self) -> list[ScheduleOutcome]:
        each = itertools.chain.from_iterable(planner._small_ones() for planner in self._both)
        by_size = {id(outcome): outcome for outcome in sorted(each, key=_by_peak)}
        distinct = (
            apart(list(by_size.values()), lambda outcome: outcome.replayed_bytes)[: _MOST_LEAST // len(BARRIER_SCOPES)]
            + self._in_checkpoints()
            + self._in_layers
        )
        closely = list(map(self._followed_closely, distinct))
        others = [*distinct, *map(self._with_sources_behind_barriers, distinct)]
        return [*closely, *others] if self._follows else [*others, *closely]

    def leaving(self, saved_bytes: int) -> ScheduleOutcome:
        """The cheapest outcome whose forward leaves at most so many bytes to the backward, inputs aside; the one that
        leaves the fewest where that is more."""
        posed = itertools.chain.from_iterable(planner._at_prices() for planner in self._both)
        outcomes = [self._outcome(problem, search.leaving(saved_bytes)) for problem, search in posed]
        within = [outcome for outcome in outcomes if left_behind(outcome) <= saved_bytes]
        return min(within, key=_by_cost) if within else min(outcomes, key=left_behind)

    def at_all_prices(self) -> list[ScheduleOutcome]:
        """The program with its loops as decided at each price, and with checkpoints around every iteration, the flat
        part as it stands."""
        posed = itertools.chain.from_iterable(planner._with_loops_decided() for planner in self._both)
        return [self._outcome(problem, search.plain) for problem, search in posed]

    @functools.cached_property
    def checkpointed(self) -> ScheduleOutcome:
        """The program with checkpoints around every iteration, the flat part as it stands."""
        problem, search = self._posed(self._loops.checkpointed(self._loops.found))
        return self._outcome(problem, search.plain)

    def near_misses(self, best: Outcome, cost: float, peak_bytes: int) -> Sequence[Outcome]:
        """Layers that run again, where that is cheaper and predicted to fit: a search by replayed bytes misses it."""
        cheaper = sorted((each for each in self._in_layers if each.cost < cost), key=_by_cost)
        return [each for each in cheaper if each.peak_bytes <= peak_bytes]

    @functools.cached_property
    def _both(self) -> Sequence[SchedulePlanner]:
        """This planner, and where loops can take in what is computed of their results, that of the program with it."""
        inside = with_epilogues_inside(self.primal)
        return [self] if inside is self.primal else [self, SchedulePlanner(inside, self.device, self.storages)]

    def _at_prices(self) -> Sequence[tuple[Problem, Search]]:
        """The program with its loops left alone, and as decided at each price."""
        prices = [None, *(self._loop_prices if self._loops.found else ())]
        return list(dict(self._posed(self._decisions(price)) for price in prices).items())

    def _with_loops_decided(self) -> Iterable[tuple[Problem, Search]]:
        decided = [self._decisions(price) for price in self._loop_prices]
        return dict(map(self._posed, [*decided, self._loops.checkpointed(self._loops.found)])).items()

    def _small_ones(self) -> Iterable[ScheduleOutcome]:
        return (self._outcome(problem, each) for problem, search in self._small for each in search.small_ones())

    def _in_checkpoints(self) -> list[ScheduleOutcome]:
        """Whole segments run again behind one barrier: replayed they take more than other schedules do, but there XLA
        may fuse, and write in place, as it does in the program as it is written."""
        posed = [planner._small[0] for planner in self._both]
        once = [self._outcome(problem, each) for problem, search in posed for each in search.checkpointed()]
        twice = [self._outcome(problem, each) for problem, search in posed for each in search.checkpointed_twice()]
        return [each for found in (once, twice) for each in sorted(found, key=_by_peak)[:MOST_IN_CHECKPOINTS]]

    @functools.cached_property
    def _in_layers(self) -> list[ScheduleOutcome]:
        """Layers that run again one by one: replayed value by value, what kernels compute on the way counts in full,
        and none of it looks small."""
        posed = [planner._small[0] for planner in self._both]
        found = [(problem, each) for problem, search in posed for each in search.in_layers(problem.contracts)]
        return [self._outcome(problem, each) for problem, each in found]

    @functools.cached_property
    def _small(self) -> list[tuple[Problem, Search]]:
        """The program with its loops left alone, and as decided where one cut goes lowest."""
        first, *others = self._at_prices()
        lowest = sorted(others, key=lambda pair: pair[1].smallest_at_once.peak_bytes)
        return [first, *lowest[:_MOST_LOOP_DECISIONS]]

    def _fit_deeply(self, replayed_bytes: int) -> ScheduleOutcome:
        found = [self._outcome(problem, search.fit(replayed_bytes)) for problem, search in self._small]
        within = [outcome for outcome in found if outcome.replayed_bytes <= replayed_bytes]
        return min(within, key=_by_cost) if within else min(found, key=_by_peak)

    def _fits_quickly(self, price: float, replayed_bytes: int) -> bool:
        return self._posed(self._decisions(price))[1].fit_quickly(replayed_bytes) is not None

    def _approached(self, too_low: float, enough: float, replayed_bytes: int) -> Iterator[ScheduleOutcome]:
        """What fits on the way to the smallest price of loops at which the program does, and right above it, where no
        loop falls into pieces: those take time of their own.

        What loops are estimated to hold is off by about as much at one price as at the next: the price that is tried
        next is the one at which they hold as much less, or more, as the program is above, or below, the limit.
        """
        price, fits = too_low, False
        for _ in range(_MOST_PRICES):
            price = self._next_price(price, too_low, enough, replayed_bytes)
            problem, search = self._posed(self._decisions(price))
            found = search.fit_quickly(replayed_bytes)
            if found:
                yield self._outcome(problem, found)
            too_low, enough, fits = (too_low, price, True) if found else (price, enough, fits)
            if self._held_bytes(too_low) - self._held_bytes(enough) <= _CLOSE * replayed_bytes:
                break
        if not fits and not self._fits_quickly(enough, replayed_bytes):
            return
        for price in (too_low, enough, in_one_piece(enough)):
            outcome = self._fit_at(price, replayed_bytes)
            if outcome.replayed_bytes <= replayed_bytes:
                yield outcome

    def _next_price(self, price: float, too_low: float, enough: float, replayed_bytes: int) -> float:
        """Between two prices, the one at which loops hold what the program at a price has room for."""
        _, search = self._posed(self._decisions(price))
        wanted = self._held_bytes(price) + replayed_bytes - search.plain.peak_bytes
        if not self._held_bytes(too_low) > wanted >= self._held_bytes(enough):
            return float(np.sqrt(too_low * enough))
        for _ in range(_HALVINGS):
            middle = float(np.sqrt(too_low * enough))
            too_low, enough = (too_low, middle) if self._held_bytes(middle) <= wanted else (middle, enough)
        return enough

    def _held_bytes(self, price: float) -> int:
        """What loops are estimated to hold at a price."""
        return sum(option.held_bytes + option.transient_bytes for option in self._loops.at(price))

    def _fit_at(self, price: float | None, replayed_bytes: int) -> ScheduleOutcome:
        problem, search = self._posed(self._decisions(price))
        return self._outcome(problem, search.fit(replayed_bytes))

    @functools.cached_property
    def _loops(self) -> Loops:
        return Loops(self.primal, self.device, self.storages)

    @functools.cached_property
    def _loop_prices(self) -> list[float]:
        _, search = self._posed(())
        return [float(search.structure.mean_price * factor) for factor in LOOP_PRICES]

    def _decisions(self, price: float | None) -> tuple[LoopDecision, ...]:
        return () if price is None else self._loops.decide(price)

    def _posed(self, decisions: tuple[LoopDecision, ...]) -> tuple[Problem, Search]:
        if decisions not in self._searches:
            problem = pose(self.primal, self.device, decisions, self._loops, self.storages, self._known)
            self._searches[decisions] = problem, Search(problem.graph, problem.run_seconds)
        return self._searches[decisions]

    def _outcome(self, problem: Problem, candidate: Candidate) -> ScheduleOutcome:
        made = ScheduleOutcome(problem, candidate.program, candidate.peak_bytes, candidate.cost)
        return self._once(made)

    def _with_sources_behind_barriers(self, outcome: ScheduleOutcome) -> ScheduleOutcome:
        program = dataclasses.replace(outcome.program, barrier_scope="sources")
        return self._once(dataclasses.replace(outcome, program=program))

    def _followed_closely(self, outcome: ScheduleOutcome) -> ScheduleOutcome:
        """The outcome with barriers that let the compiler choose little of the order, and join no contraction with what
        reads it: a reduction that takes whole chains in needs what they read, constants in full among that."""
        turns = barriers_at_turns(outcome.problem.graph, outcome.program.steps, outcome.problem.contracts)
        program = dataclasses.replace(outcome.program, barriers=turns, barrier_scope="order")
        return self._once(dataclasses.replace(outcome, program=program))

    def _once(self, outcome: ScheduleOutcome) -> ScheduleOutcome:
        """One object per schedule, so that what was predicted or compiled of it is not asked for twice."""
        key = outcome.problem, outcome.program.steps.tobytes(), outcome.program.barrier_scope
        return self._outcomes.setdefault(key, outcome)


def apart[O: Outcome](outcomes: Sequence[O], size: Callable[[O], int]) -> list[O]:
    """Of outcomes that are sorted by size, those that differ enough for a compiler to tell them apart."""
    chosen = list(outcomes[:1])
    for outcome in outcomes[1:]:
        if size(outcome) > APART * size(chosen[-1]):
            chosen.append(outcome)
    return chosen


def _by_peak(outcome: ScheduleOutcome) -> tuple[int, float]:
    return outcome.replayed_bytes, outcome.cost


def _by_cost(outcome: ScheduleOutcome) -> tuple[float, int]:
    return outcome.cost, outcome.replayed_bytes
