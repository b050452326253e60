"""Outcomes for a flat program at any number of bytes: the step, and in the same way every body inside it."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from jaxremat.backends.devices import Device
from jaxremat.base import compat
from jaxremat.base.compat import Eqn, Jaxpr
from jaxremat.cost.bodies import KnownBodies
from jaxremat.cost.pricing import shares
from jaxremat.graph.graph import Graph
from jaxremat.graph.replay import replay
from jaxremat.loops.decision import LoopDecision
from jaxremat.planner.contract import cheapest_within
from jaxremat.planner.correction import Correction, correct
from jaxremat.planner.schedules import APART, LOOP_PRICES
from jaxremat.planner.solver_schedules import require_graphs
from jaxremat.solvers.base import Solver
from jaxremat.step.decision import ProgramDecision
from jaxremat.step.joining import joined
from jaxremat.step.outcome import Posed, StepOutcome, pose_program
from jaxremat.step.pairs import Pairs, emit_pairs, find_pairs, weights_of
from jaxremat.step.program import NOT_ALIASED, Aliased, StepProgram
from jaxremat.step.rewriting import bodies_of, rewritten, with_bodies
from jaxremat.step.scheduling import FlatSchedule, SolverSearch, StepSearch
from jaxremat.trace import jaxpr as jaxprs
from jaxremat.trace.round_trips import LOSSLESS

_OWN_SEARCH = ("auto", "mincut")
_REFINEMENTS = 6  # halvings of the ratio between two prices, 1.8: to 1 %; benchmarks/constants.py
_STRIDE = 4  # of the prices, at first: a whole order of magnitude; benchmarks/constants.py
_MOST_PREDICTIONS = 6  # as compilations
_RUNG = 0.9  # of the last aim: as coarse as predictions are off, prediction.md
_BETWEEN = (0.25, 0.5, 0.75)  # of a ratio: half way, and half way again
_LOW_RUNGS = 4  # benchmarks/constants.py
_MOST_SMALL = 6  # predicted where nothing else fits; benchmarks/constants.py

Bodies = tuple[tuple[int, int, StepOutcome], ...]
Schedules = StepSearch | SolverSearch
SearchFor = Callable[[Graph, np.ndarray], Schedules]


class ProgramPlanner:
    """Outcomes for one flat program on one device.

    Args:
      jaxpr: the program; calls are inlined.
      device: what costs and bytes are for.
      shardings: one per input, or none.
      aliased: results that live in the buffers of donated inputs.
      is_body: whether it runs inside a loop, where inputs and outputs are counted outside.
      storages: forms in which values may wait between the scans of a pair.
      search_for: the search of a graph, from it and what running each of its nodes again is taken to cost.
      known: bodies of loops whose costs on the device are known.
      is_joined: whether it is another program with its pairs of conditionals and shard_maps joined.
    """

    def __init__(
        self,
        jaxpr: Jaxpr,
        device: Device,
        shardings: tuple[Any, ...] = (),
        aliased: Aliased = NOT_ALIASED,
        *,
        is_body: bool = False,
        storages: tuple[str, ...] = LOSSLESS,
        search_for: SearchFor = StepSearch,
        known: KnownBodies | None = None,
        is_joined: bool = False,
    ) -> None:
        self.jaxpr = jaxpr
        self.device = device
        self._shardings = shardings
        self._aliased = aliased
        self._is_body = is_body
        self._storages = storages
        self._search_for = search_for
        self._known = known or KnownBodies()
        self._is_joined = is_joined
        self._posed_as: dict[tuple[Any, ...], tuple[Posed, Schedules]] = {}
        self._outcomes: dict[ProgramDecision, StepOutcome] = {}
        self._loops_of: dict[ProgramDecision, tuple[tuple[LoopDecision, ...], Bodies]] = {}
        self._layered: dict[tuple[Any, ...], list[StepOutcome]] = {}
        self._fits: dict[int, StepOutcome] = {}
        self._within: dict[int, StepOutcome] = {}
        self._inside: dict[tuple[int, int], ProgramPlanner] = {}

    @functools.cached_property
    def plain(self) -> StepOutcome:
        """The program as it stands."""
        return self._outcome((), (), self._posed((), ())[1].plain)

    @property
    def has_pairs(self) -> bool:
        """Whether there are pairs of scans, at any depth."""
        return _holds_pairs(self.jaxpr)

    def fit(self, replayed_bytes: int) -> StepOutcome:
        """The cheapest outcome whose replayed peak is within a number of bytes, or the one with the smallest peak."""
        if self.plain.replayed_bytes <= replayed_bytes:
            return self.plain
        aim = _in_grains(replayed_bytes, self.plain.replayed_bytes)
        if aim not in self._fits:
            each = dict.fromkeys([self._bodies_within(aim), self._bodies_that_fit(aim)])
            self._fits[aim] = cheapest_within([self._with_pairs(bodies, aim) for bodies in each], aim)
        return self._fits[aim]

    @functools.cached_property
    def smallest(self) -> StepOutcome:
        """The outcome with the smallest replayed peak."""
        return min(self._own_smallest, self._joined.smallest, key=by_peak) if self._joined else self._own_smallest

    def smallest_few(self, number: int) -> list[StepOutcome]:
        """Outcomes of small replayed peak, no two alike: what to try where the prediction finds the rest too large."""
        small = _distinct(sorted(self._small, key=by_peak))[:number]
        layered = self._in_layers(self._own_smallest)
        joined = self._joined.smallest_few(number) if self._joined else ()
        return _distinct([*self._lowest(number), *small, *self._in_checkpoints, *layered, *joined])

    def predicted(self, limit: int) -> Correction[StepOutcome, None]:
        """The cheapest outcome whose predicted peak is within a limit."""
        written = self._as_run(self.plain)
        offset = written.replayed_bytes - written.peak_bytes
        correction = correct(
            lambda aim: self._in_order_that_fits(self.fit(aim), limit),
            predict,
            limit,
            most_trials=_MOST_PREDICTIONS,
            first_aim=max(1, limit + offset),
            expected=lambda outcome: outcome.replayed_bytes,
        )
        if correction.best is None:
            correction = correction.with_more(self._lower(correction.smallest.candidate, limit), predict, limit)
        if correction.best:
            best = correction.best.candidate
            layered = [each for each in self._in_layers(best) if each.cost < best.cost]
            return correction.with_more([*layered, *self._higher(best, limit)], predict, limit)
        if self._joined:
            found = self._joined.predicted(limit)
            correction = correction.with_more([(found.best or found.smallest).candidate], predict, limit)
        return correction if correction.best else correction.with_more(self.smallest_few(_MOST_SMALL), predict, limit)

    def _higher(self, start: StepOutcome, limit: int) -> Iterator[StepOutcome]:
        """Where what fits is replayed far below a limit, outcomes between that and a rung above the limit: what is
        replayed higher may be predicted lower."""
        low, high = start.replayed_bytes, limit / _RUNG
        if low <= _RUNG * limit:
            for part in _BETWEEN:
                yield self._in_order_that_fits(self.fit(int(low * (high / low) ** part)), limit)

    def _lower(self, start: StepOutcome, limit: int) -> Iterator[StepOutcome]:
        """Outcomes of ever lower rungs, up to the first that is predicted to fit: where one hill cannot be replayed any
        lower, and is predicted to be lower anyway, the others still can."""
        for aim in reversed(self._rungs):
            if aim < start.replayed_bytes:
                outcome = self._in_order_that_fits(self.fit(aim), limit)
                yield outcome
                if outcome.peak_bytes <= limit:
                    return

    @functools.cached_property
    def _own_smallest(self) -> StepOutcome:
        """Of what leaves pairs of conditionals and shard_maps apart."""
        bodies = self._bodies_within(1)
        each = [(pairs, self._posed(pairs, bodies)[1].smallest) for pairs in self._pair_decisions]
        return min((self._outcome(pairs, bodies, schedule) for pairs, schedule in each), key=by_peak)

    @functools.cached_property
    def _rungs(self) -> list[int]:
        """Rising aims, the same whatever is asked for, from the smallest peak on."""
        least, most = self._own_smallest.replayed_bytes, self.plain.replayed_bytes
        heights = (int(least / _RUNG**k) for k in itertools.count(1))
        return list(itertools.takewhile(lambda aim: 0 < aim < most, heights))

    def _lowest(self, number: int) -> list[StepOutcome]:
        """The smallest outcome and those of the lowest rungs, in each order: what is replayed a little higher may be
        predicted lower, or take far less time. From the highest on: each search goes on from the last one."""
        aims = self._rungs[: min(number - 1, _LOW_RUNGS)]
        found = [*map(self.fit, reversed(aims)), self._own_smallest]
        return [ordered for outcome in found for ordered in self._in_each_order(outcome)]

    def _in_order_that_fits(self, outcome: StepOutcome, limit: int) -> StepOutcome:
        """An outcome in the first order in which it is predicted to fit; in the lowest where it is in none."""
        tried = []
        for ordered in self._in_each_order(outcome):
            if ordered.peak_bytes <= limit:
                return ordered
            tried.append(ordered)
        return min(tried, key=lambda ordered: ordered.peak_bytes)

    def _in_each_order(self, outcome: StepOutcome) -> Iterator[StepOutcome]:
        """An outcome as it may be emitted: with the fewest values behind barriers, where the most is fused, and with
        all of one stretch made before the next begins, where the least of the order is left to the compiler."""
        if self._follows or not outcome.schedule.barriers:
            yield self._as_run(outcome)
        else:
            yield self._with(outcome, outcome.schedule.with_sources_behind_barriers())
            yield self._with(outcome, outcome.schedule.stretch_by_stretch())

    def _as_run(self, outcome: StepOutcome) -> StepOutcome:
        """An outcome as it is emitted: followed closely where that is needed."""
        return self._closely(outcome) if self._follows else outcome

    def _closely(self, outcome: StepOutcome) -> StepOutcome:
        """An outcome with barriers that let the compiler choose little of the order."""
        return self._with(outcome, outcome.schedule.followed_closely(outcome.posed.ends))

    def _with(self, outcome: StepOutcome, schedule: FlatSchedule) -> StepOutcome:
        """An outcome's loops with another schedule."""
        pairs, bodies = self._loops_of[outcome.decision]
        return self._outcome(pairs, bodies, schedule)

    @functools.cached_property
    def _joined(self) -> ProgramPlanner | None:
        """The planner of the program with its pairs of conditionals and shard_maps joined, where there are any."""
        jaxpr = None if self._is_joined else joined(self.jaxpr)
        if jaxpr is None:
            return None
        return ProgramPlanner(
            jaxpr,
            self.device,
            self._shardings,
            self._aliased,
            is_body=self._is_body,
            storages=self._storages,
            search_for=self._search_for,
            known=self._known,
            is_joined=True,
        )

    @property
    def _follows(self) -> bool:
        """Whether schedules are followed closely: over a mesh a compiler sums all gradients at once if it may, and then
        holds all of them twice; and it puts off copies to the host until the end."""
        return any(self._shardings) or any(map(jaxprs.is_on_host, self.jaxpr.invars))

    @functools.cached_property
    def _small(self) -> list[StepOutcome]:
        """Outcomes with the smallest bodies, and with pairs as decided at each price."""
        bodies = self._bodies_within(1)
        return [
            self._as_run(self._outcome(pairs, bodies, schedule))
            for pairs in self._pair_decisions
            for schedule in self._posed(pairs, bodies)[1].smallest_few()
        ]

    @functools.cached_property
    def _in_checkpoints(self) -> list[StepOutcome]:
        """Outcomes that run whole segments again, with the smallest bodies, the pairs left alone, in each order:
        replayed they take more than others do, but there XLA may fuse, and write in place, as it does in the program as
        it is written."""
        bodies = self._bodies_within(1)
        checkpointed = [self._outcome((), bodies, schedule) for schedule in self._posed((), bodies)[1].in_checkpoints()]
        return [ordered for outcome in checkpointed for ordered in self._in_each_order(outcome)]

    def _in_layers(self, like: StepOutcome) -> list[StepOutcome]:
        """Outcomes with the loops of another one that run layers again one by one, in each order: replayed value by
        value, what kernels compute on the way counts in full, and none of it looks small."""
        loops = self._loops_of[like.decision]
        if loops not in self._layered:
            posed, search = self._posed(*loops)
            layered = [self._outcome(*loops, schedule) for schedule in search.in_layers(posed.contracts)]
            self._layered[loops] = [ordered for outcome in layered for ordered in self._in_each_order(outcome)]
        return self._layered[loops]

    @functools.cached_property
    def _pair_decisions(self) -> list[tuple[LoopDecision, ...]]:
        """What may be decided for the pairs, at a range of prices; that they are left alone, first."""
        prices = self._pair_prices[::_STRIDE] if self._pairs.found else ()
        return list(dict.fromkeys(map(self._decisions, [None, *prices])))

    def _with_pairs(self, bodies: Bodies, replayed_bytes: int) -> StepOutcome:
        """About the smallest price of a byte at which pairs and flat schedule together fit; without pairs there is
        one."""
        prices = self._prices_around(bodies, replayed_bytes) if self._pairs.found else [None]
        found = [self._fit_at(price, bodies, replayed_bytes) for price in prices]
        return cheapest_within(found, replayed_bytes)

    def _prices_around(self, bodies: Bodies, replayed_bytes: int) -> Sequence[float]:
        """Two neighbouring prices of a byte, of which the higher one lets pairs and flat schedule fit with one cut; a
        range where none does."""
        prices = self._pair_prices
        fits = functools.cache(lambda pairs: self._posed(pairs, bodies)[1].fits_quickly(replayed_bytes))
        within = lambda price: fits(self._decisions(price))
        high = next((i for i in range(0, len(prices), _STRIDE) if within(prices[i])), None)
        if high is None:
            return prices[::_STRIDE]
        low = max(high - _STRIDE, 0)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if within(prices[middle]) else (middle, high)
        too_low, enough = prices[low], prices[high]
        for _ in range(_REFINEMENTS):
            middle_price = float(np.sqrt(too_low * enough))
            too_low, enough = (too_low, middle_price) if within(middle_price) else (middle_price, enough)
        return too_low, enough

    def _fit_at(self, price: float | None, bodies: Bodies, replayed_bytes: int) -> StepOutcome:
        pairs = self._decisions(price)
        return self._outcome(pairs, bodies, self._posed(pairs, bodies)[1].fit(replayed_bytes))

    def _bodies_within(self, replayed_bytes: int) -> Bodies:
        """An outcome for each body that is too large beside what is live around it; the largest share it may take."""
        graph = self.plain.posed.graph
        live = replay(graph, self.plain.schedule.steps).live_bytes
        inside = shares(self.plain.posed.joint).inside
        paired = {position for pair in self._pairs.found for position in (pair.first, pair.second)}
        chosen = []
        for position in np.flatnonzero(live > replayed_bytes).tolist():
            eqn = self.jaxpr.eqns[position]
            room = replayed_bytes - int(live[position]) + int(graph.workspace_bytes[position])
            for k in () if position in paired else _plannable(eqn):
                planner = self._body(position, k)
                with compat.in_body_of(eqn):
                    found = planner.within(int(max(room, 0) / inside[position]))
                if found is not planner.plain:
                    chosen.append((position, k, found))
        return tuple(chosen)

    def _bodies_that_fit(self, replayed_bytes: int) -> Bodies:
        """The same with less room by what the largest of them is above it where it runs: a little, but what runs around
        it would run again for that."""
        bodies = self._bodies_within(replayed_bytes)
        posed, search = self._posed((), bodies)
        peak_node = replay(posed.graph, search.plain.steps).peak_step
        is_body = bool(bodies_of(posed.joint.eqns[peak_node]))
        over = search.plain.peak_bytes - replayed_bytes
        return self._bodies_within(replayed_bytes - over) if is_body and over > 0 else bodies

    def within(self, room_bytes: int) -> StepOutcome:
        """For a body: the cheapest outcome that is predicted to take no more, or the smallest."""
        if self.plain.peak_bytes <= room_bytes:
            return self.plain
        if room_bytes <= 0:
            return min(self.smallest_few(_MOST_SMALL), key=lambda outcome: (outcome.peak_bytes, outcome.cost))
        room = _in_grains(room_bytes, self.plain.peak_bytes)
        if room not in self._within:
            predicted = self.predicted(room)
            self._within[room] = (predicted.best or predicted.smallest).candidate
        return self._within[room]

    def _body(self, position: int, k: int) -> ProgramPlanner:
        if (position, k) not in self._inside:
            body = bodies_of(self.jaxpr.eqns[position])[k]
            self._inside[position, k] = ProgramPlanner(
                body,
                self.device,
                is_body=True,
                storages=self._storages,
                search_for=self._search_for,
                known=self._known,
            )
        return self._inside[position, k]

    @functools.cached_property
    def _pairs(self) -> Pairs:
        return Pairs(find_pairs(self.jaxpr, self._storages, weights_of(self.jaxpr, self._is_body)), self.device)

    @functools.cached_property
    def _pair_prices(self) -> list[float]:
        return [float(self.plain.posed.graph.mean_price * factor) for factor in LOOP_PRICES]

    def _decisions(self, price: float | None) -> tuple[LoopDecision, ...]:
        return () if price is None else self._pairs.decide(price)

    def _posed(self, pairs: tuple[LoopDecision, ...], bodies: Bodies) -> tuple[Posed, Schedules]:
        key = pairs, tuple((position, k, id(outcome)) for position, k, outcome in bodies)
        if key not in self._posed_as:
            new = {(position, k): outcome.jaxpr for position, k, outcome in bodies}
            emitted = emit_pairs(self.jaxpr, self._pairs.found, pairs, self.device.backend) if pairs else {}
            jaxpr = rewritten(self.jaxpr, {**emitted, **with_bodies(self.jaxpr, new)})
            posed = pose_program(
                jaxpr, self.device, self._shardings, self._aliased, is_body=self._is_body, known=self._known
            )
            self._posed_as[key] = posed, self._search_for(posed.graph, posed.run_seconds(again_scans=not pairs))
        return self._posed_as[key]

    def _outcome(self, pairs: tuple[LoopDecision, ...], bodies: Bodies, schedule: FlatSchedule) -> StepOutcome:
        """One outcome per decision, so that what was predicted or compiled of it is not asked for twice."""
        inner = tuple((position, k, outcome.decision) for position, k, outcome in bodies)
        in_order = np.array_equal(schedule.steps, np.arange(schedule.steps.size))
        steps = () if in_order else tuple(schedule.steps.tolist())
        scope = schedule.barrier_scope
        barriers = () if in_order and scope == "all" else schedule.barriers
        decision = ProgramDecision(
            steps, barriers, pairs, inner, self._storages if pairs else (), scope, self._is_joined
        )
        if decision not in self._outcomes:
            self._loops_of[decision] = pairs, bodies
            self._outcomes[decision] = StepOutcome(self._posed(pairs, bodies)[0], schedule, decision)
        return self._outcomes[decision]


def step_planner(program: StepProgram, device: Device, **options: Any) -> ProgramPlanner:
    """The planner of a whole step; `options` as of `ProgramPlanner`."""
    return ProgramPlanner(program.jaxpr, device, program.shardings, program.aliased, **options)


def search_by(solver: Solver, seed: int) -> SearchFor:
    """The search that a solver stands for.

    Raises:
      ArgumentError: for a solver of chains.
    """
    require_graphs(solver)
    by_cuts = solver.name in _OWN_SEARCH
    return StepSearch if by_cuts else lambda graph, run_seconds: SolverSearch(graph, solver, seed)


def _holds_pairs(jaxpr: Jaxpr) -> bool:
    return bool(find_pairs(jaxpr)) or any(_holds_pairs(body) for eqn in jaxpr.eqns for body in bodies_of(eqn))


def _plannable(eqn: Eqn) -> list[int]:
    """Which bodies of an equation compute anything."""
    return [k for k, body in enumerate(bodies_of(eqn)) if body.eqns]


def _distinct(outcomes: Sequence[StepOutcome]) -> list[StepOutcome]:
    return list({id(outcome): outcome for outcome in outcomes}.values())


def _in_grains(aim: int, plain_bytes: int) -> int:
    """An aim as coarse as two are told apart."""
    grain = max(1, int((APART - 1) * plain_bytes))
    return max(1, aim // grain * grain)


def predict(outcome: StepOutcome) -> tuple[int, None]:
    """The predicted peak, as a measurement."""
    return outcome.peak_bytes, None


def by_peak(outcome: StepOutcome) -> tuple[int, float]:
    """The order of replayed peaks."""
    return outcome.replayed_bytes, outcome.cost
