"""A schedule in terms of equations: segments of the forward and of the backward, with what enters through barriers.

The forward runs the steps before the first one that depends on a cotangent, and keeps what later steps still read.
The backward runs the rest, in segments. A segment receives all that it reads, kept values and the newest cotangents
together, through one optimization barrier: XLA can then neither merge a recomputation with the first computation, nor
start it, or a copy of a kept value in another layout, before the backward has come that far.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set

import numpy as np

from jaxremat.base.compat import Eqn, Literal, Var
from jaxremat.emit.orders import Order
from jaxremat.emit.transfers import Transfers
from jaxremat.emit.zeros import Zeros, parts_with_own_zeros, zeros_written_into
from jaxremat.graph.scheduled import ScheduledProgram
from jaxremat.trace import jaxpr as jaxprs
from jaxremat.trace.joint import Joint
from jaxremat.trace.masks import NO_MASKS, Masks
from jaxremat.trace.projections import estimate
from jaxremat.trace.round_trips import RoundTrip


@dataclasses.dataclass(frozen=True, eq=False)
class Segment:
    """A stretch of the program.

    Attributes:
      eqns: equations in order, recomputed ones among them.
      barrier_operands: what enters through the barrier: all that the segment reads from outside, cotangents included.
      passed: what passes through the same barrier on its way to whoever reads it, so that it is made before.
      results: those of `passed` that the program returns, in the layout that it returns them in: what a compiler made
        in another one would wait there, beside the memory for the result.
    """

    eqns: tuple[Eqn, ...]
    barrier_operands: tuple[Var, ...]
    passed: tuple[Var, ...] = ()
    results: frozenset[Var] = frozenset()

    @property
    def through(self) -> tuple[Var, ...]:
        """All that goes through the barrier; empty where there is none."""
        return *self.barrier_operands, *self.passed


@dataclasses.dataclass(frozen=True, eq=False)
class Script:
    """A schedule in terms of equations.

    Attributes:
      forward: segments of the forward pass; all but the first stand behind a barrier.
      residuals: variables that the backward reads from the forward, inputs of the program included.
      backward: segments of the backward pass.
      opening: what both passes start with, each for itself: constants, which are neither kept nor fenced, so that the
        compiler can write them where they are read, and masks, which pass a barrier, so that it cannot.
      same: for each variable of a round trip, the one that holds the same value once it is made.
      zeros: what stretches make for themselves to write into.
      orders: of what the forward keeps, in which order of axes it lies where that is not as written.
      in_place_of: of what runs in the place of an equation of the program, and not with its own variables alone, that
        equation.
    """

    forward: tuple[Segment, ...]
    residuals: tuple[Var, ...]
    backward: tuple[Segment, ...]
    opening: tuple[Segment, ...] = ()
    same: Mapping[Var, Var] = types.MappingProxyType({})
    zeros: tuple[Zeros, ...] = ()
    orders: Mapping[Var, Order] = types.MappingProxyType({})
    in_place_of: Mapping[Eqn, Eqn] = types.MappingProxyType({})

    @property
    def forward_lines(self) -> int:
        """How many equations and barriers the forward is made of."""
        return sum(len(each.eqns) + bool(each.through) for each in (*self.opening, *self.forward))

    @property
    def numbers(self) -> dict[Var, Literal]:
        """What the seeds of zeros stand for, before they have passed a barrier."""
        return {each.seed: each.number for each in self.zeros}


def write_script(
    joint: Joint,
    program: ScheduledProgram,
    unfenced: Set[Var] = frozenset(),
    late_writes: Mapping[int, Eqn] = types.MappingProxyType({}),
    orders: Mapping[Var, Order] = types.MappingProxyType({}),
    masks: Masks = NO_MASKS,
) -> Script:
    """A scheduled program in terms of equations; see `ScriptWriter`.

    Args:
      joint, unfenced, masks: as of a writer.
      program, late_writes: the schedule, as a writer takes it.
      orders: in which order of axes values pass barriers.
    """
    script = ScriptWriter(joint, unfenced, masks).write(program, late_writes)
    waiting = {v for segment in script.backward for v in segment.through}.intersection(script.residuals)
    return dataclasses.replace(script, orders={v: order for v, order in orders.items() if v in waiting})


class ScriptWriter:
    """Writes schedules of one program in terms of equations; what they have in common is worked out once.

    Args:
      joint: the program.
      unfenced: what enters no barrier in any case; see `Backend.unfenced`.
      masks: what is written before anything else; see `Backend.masks`.
    """

    def __init__(self, joint: Joint, unfenced: Set[Var], masks: Masks = NO_MASKS) -> None:
        self._facts = _Facts(joint, unfenced, masks)

    def write(self, program: ScheduledProgram, late_writes: Mapping[int, Eqn] = types.MappingProxyType({})) -> Script:
        """A schedule; one that repeats nothing has no barrier but those of late writes.

        Args:
          program: the schedule.
          late_writes: what runs in the place of what writes into zeros, by node; see `Backend.late_writes`.
        """
        facts, joint = self._facts, self._facts.joint
        transfers = Transfers(joint, {joint.values[v] for v in program.saved.tolist()})
        given = _stretches(facts, program, late_writes)
        stretches = [stretch for stretch in _without_idle_trips(facts, given, transfers.saved) if stretch.eqns]
        fences = _Fences(facts, program, transfers, stretches)
        parts = [(of.is_late, part) for number, of in enumerate(stretches) for part in fences.segments(number)]
        forward, backward = ([part for is_late, part in parts if is_late == late] for late in (False, True))
        residuals = _residuals(facts, program, [eqn for stretch in given if stretch.is_late for eqn in stretch.eqns])
        if program.barrier_scope == "order":
            forward = fences.in_order(forward, [*residuals, *jaxprs.vars_of(joint.outputs)])
            backward = fences.in_order(backward, jaxprs.vars_of(joint.gradients))
        return Script(
            forward=tuple(forward),
            residuals=residuals,
            backward=tuple(backward),
            opening=opening_of(joint, facts.masks, has_barriers=fences.are_any),
            same=transfers.same,
            zeros=tuple(facts.zeros.values()),
            in_place_of=facts.in_place_of,
        )


def opening_of(joint: Joint, masks: Masks, *, has_barriers: bool) -> tuple[Segment, ...]:
    """What a program starts with: its constants and masks, which pass a barrier where it has others."""
    made = Segment((*joint.constants, *masks.eqns), ())
    written = Segment((), (), passed=masks.in_order)
    return (made, written) if has_barriers and masks.eqns else (made,)


def made_by(eqns: Sequence[Eqn], same: Mapping[Var, Var]) -> list[Var]:
    """What equations make, and what is the same."""
    made = [v for eqn in eqns for v in eqn.outvars]
    return [*made, *(same[v] for v in made if v in same)]


@dataclasses.dataclass(frozen=True, eq=False)
class _Stretch:
    """Equations that run between two barriers.

    Attributes:
      eqns: in order.
      is_late: whether they are of the backward.
      is_first: whether nothing runs before them.
    """

    eqns: tuple[Eqn, ...]
    is_late: bool
    is_first: bool


class _Facts:
    """What is asked of a program for all of its schedules.

    Attributes:
      joint: the program.
      anywhere: variables that are available anywhere.
      free: those, and what enters no barrier in any case.
      inputs: of the program.
      masks: what is written before anything else.
      zeros: what stretches make for themselves to write into.
      reads: the variables that each equation reads.
      in_place_of: as of a script.
    """

    def __init__(self, joint: Joint, unfenced: Set[Var], masks: Masks) -> None:
        self.joint, self.masks = joint, masks
        self._opening = (*joint.constants, *masks.eqns)
        self.anywhere = {*joint.jaxpr.constvars, *(v for eqn in self._opening for v in eqn.outvars)}
        self.free = self.anywhere | unfenced
        self.inputs = frozenset(joint.inputs)
        self.zeros = zeros_written_into(joint)
        self.reads = _ReadBy()
        self.in_place_of: dict[Eqn, Eqn] = {}
        self._estimates: dict[Eqn, Eqn] = {}

    def estimate_of(self, product: Eqn, trip: RoundTrip) -> Eqn:
        """A product with what would come back of a projection, from what waits."""
        if product not in self._estimates:
            self._estimates[product] = made = estimate(product, trip.restored, trip.waiting)
            self.in_place_of[made] = product
        return self._estimates[product]

    @functools.cached_property
    def estimated(self) -> dict[Var, RoundTrip]:
        """By what comes back of them, round trips that are good for estimates only."""
        return {trip.restored: trip for trip in self.joint.round_trips if trip.only_estimates}

    def read_by(self, eqns: Iterable[Eqn]) -> dict[Var, None]:
        """The variables that equations read, in order."""
        return dict.fromkeys(itertools.chain.from_iterable(map(self.reads.__getitem__, eqns)))

    @functools.cached_property
    def is_opening(self) -> np.ndarray:
        """[N] bool: equations of which every pass makes the results for itself."""
        opening = set(self._opening)
        return np.asarray([eqn in opening for eqn in self.joint.eqns], bool)

    @functools.cached_property
    def on_host(self) -> frozenset[Var]:
        """What lies in the host's memory."""
        return frozenset(filter(jaxprs.is_on_host, (*self.joint.jaxpr.invars, *self.joint.values)))

    @functools.cached_property
    def is_on_trip(self) -> _OnTrips:
        """Whether an equation makes, or reads, what waits in another form, what waits for it, or what comes back."""
        trips = self.joint.round_trips
        return _OnTrips(frozenset(v for trip in trips for v in (trip.source, trip.stored, trip.restored)), self.reads)


class _OnTrips(dict[Eqn, bool]):
    def __init__(self, on_trips: frozenset[Var], reads: _ReadBy) -> None:
        super().__init__()
        self._on_trips, self._reads = on_trips, reads

    def __missing__(self, eqn: Eqn) -> bool:
        self[eqn] = found = not self._on_trips.isdisjoint((*eqn.outvars, *self._reads[eqn]))
        return found


class _ReadBy(dict[Eqn, list[Var]]):
    def __missing__(self, eqn: Eqn) -> list[Var]:
        self[eqn] = found = jaxprs.vars_of(eqn.invars)
        return found


def _stretches(facts: _Facts, program: ScheduledProgram, late_writes: Mapping[int, Eqn]) -> list[_Stretch]:
    """A schedule between its barriers, without what is available anywhere."""
    eqns = facts.joint.eqns
    if late_writes:
        eqns = [late_writes.get(node, eqn) for node, eqn in enumerate(eqns)]
    bounds = sorted({0, program.backward_start, *program.barriers, program.steps.size})

    def part(first: int, end: int) -> tuple[Eqn, ...]:
        nodes = program.steps[first:end]
        return tuple([eqns[node] for node in nodes[~facts.is_opening[nodes]].tolist()])

    return [
        _Stretch(part(first, end), first >= program.backward_start, first == 0)
        for first, end in itertools.pairwise(bounds)
    ]


class _Fences:
    """The barriers of a schedule: what goes through each of them."""

    def __init__(
        self, facts: _Facts, program: ScheduledProgram, transfers: Transfers, stretches: Sequence[_Stretch]
    ) -> None:
        counts = collections.Counter(itertools.chain.from_iterable(stretch.eqns for stretch in stretches))
        self._facts, self._joint, self._transfers, self._stretches = facts, facts.joint, transfers, stretches
        self._repeated = {eqn for eqn, count in counts.items() if count > 1}
        self._enters = self._sources if program.barrier_scope == "sources" else self._read_from_outside
        self._ran: set[Eqn] = set()
        self._waiting: tuple[Var, ...] = ()
        self._outside: dict[tuple[Eqn, ...], tuple[Var, ...]] = {}

    def segments(self, number: int) -> list[Segment]:
        """A stretch with its barrier, after all those before it, in parts that make their own zeros."""
        segment, zeros = self._segment(number), self._facts.zeros
        if not self.are_any or zeros.keys().isdisjoint(self._facts.read_by(segment.eqns)):
            return [segment]
        given = {*self._facts.inputs, *self._facts.free}
        (eqns, first), *later = parts_with_own_zeros(segment.eqns, zeros, given, has_barrier=bool(segment.through))
        begun = dataclasses.replace(segment, eqns=eqns, barrier_operands=(*segment.barrier_operands, *first))
        return [begun, *(Segment(part, operands) for part, operands in later)]

    @property
    def are_any(self) -> bool:
        """Whether the program has barriers: where anything runs again or waits in another form."""
        return bool(self._repeated or self._transfers.taken)

    def _segment(self, number: int) -> Segment:
        stretch = self._stretches[number]
        made = Segment(stretch.eqns, ())
        if not stretch.is_first and self.are_any:
            made = self._behind_barrier(number)
            self._waiting = () if made.through else self._waiting
        self._ran.update(stretch.eqns)
        until = functools.partial(self._stretches_until, number)
        self._waiting += self._transfers.left_waiting(stretch.eqns, until)
        return made

    def _behind_barrier(self, number: int) -> Segment:
        """A segment with all that goes through its barrier; there is none if nothing does."""
        stretch = self._stretches[number]
        operands = self._entering(stretch)
        passed = self._transfers.passed(stretch.eqns, (*self._waiting, *self._tied(number, operands)))
        if not operands and self._transfers.waiting.issuperset(passed):
            passed = ()  # copies alone would be tied to nothing
        return Segment(stretch.eqns, operands, passed, self._transfers.gradients.intersection(passed))

    def _entering(self, stretch: _Stretch) -> tuple[Var, ...]:
        """What enters the barrier of a stretch from outside: in the forward nothing, unless something runs again there;
        in the backward cotangents at least, where something else waits for the barrier."""
        if not stretch.is_late and self._ran.isdisjoint(stretch.eqns):
            return ()
        operands = self._enters(stretch.eqns)
        if operands or not (stretch.is_late and self._waiting):
            return operands
        return self._cotangents_among(self._read_from_outside(stretch.eqns))

    def _tied(self, number: int, operands: Sequence[Var]) -> tuple[Var, ...]:
        """Where no cotangent enters a stretch of the backward, those that the next one goes on with: what only runs
        again would else do so as soon as what it reads is there, long before."""
        if not (operands and self._stretches[number].is_late) or self._cotangents_among(operands):
            return ()
        following = (self._read_from_outside(stretch.eqns) for stretch in self._stretches[number + 1 :])
        return next(filter(None, map(self._cotangents_among, following)), ())

    def _read_from_outside(self, eqns: tuple[Eqn, ...]) -> tuple[Var, ...]:
        if eqns not in self._outside:
            own, free, ends = {*made_by(eqns, self._transfers.same)}, self._facts.free, self._transfers.ends
            on_host = self._facts.on_host - ends
            read = [v for v in self._facts.read_by(eqns) if v not in own and v not in free and v not in on_host]
            self._outside[eqns] = tuple(read)
        return self._outside[eqns]

    def _sources(self, eqns: tuple[Eqn, ...]) -> tuple[Var, ...]:
        """What the recomputed equations of a stretch read from outside, what it reads that came over the link, and the
        cotangents that it reads."""
        facts, ends, early = self._facts, self._transfers.ends, self._joint.early_values
        again = [eqn for eqn in eqns if eqn in self._repeated or not early.isdisjoint(eqn.outvars)]
        read = self._read_from_outside(eqns)
        if not again and ends.isdisjoint(read):
            return ()
        wanted = {*facts.read_by(again)}.union(ends, self._cotangents_among(read))
        return tuple([v for v in read if v in wanted])

    def _cotangents_among(self, variables: Sequence[Var]) -> tuple[Var, ...]:
        early, inputs = self._joint.early_values, self._facts.inputs
        return tuple([v for v in variables if v not in early and v not in inputs])

    def _stretches_until(self, number: int, var: Var) -> int:
        """How many stretches after a given one a variable is read last in the same pass: none if the next one makes it
        again."""
        following = self._stretches[number + 1 : number + 2]
        if any(var in eqn.outvars for stretch in following for eqn in stretch.eqns):
            return 0
        return self._last_read.get((self._stretches[number].is_late, var), 0) - number

    @functools.cached_property
    def _last_read(self) -> dict[tuple[bool, Var], int]:
        """The number of the last stretch of each pass that reads each variable."""
        return {
            (stretch.is_late, v): number
            for number, stretch in enumerate(self._stretches)
            for eqn in stretch.eqns
            for v in self._facts.reads[eqn]
        }

    def in_order(self, segments: Sequence[Segment], given_out: Sequence[Var]) -> list[Segment]:
        """The segments such that all of one is made before the next begins: what later ones read, or is given out,
        passes the next one's barrier."""
        same = self._transfers.same
        wanted = {v for v in given_out if not jaxprs.is_on_host(v)}
        ordered: list[Segment] = []
        for before, segment in zip(reversed(segments[:-1]), reversed(segments[1:])):
            wanted = (wanted - {*made_by(segment.eqns, same)}) | {*self._read_from_outside(segment.eqns)}
            ahead = wanted.difference(segment.through)
            also = [v for v in made_by(before.eqns, same) if v in ahead] if segment.barrier_operands else []
            ordered.append(dataclasses.replace(segment, passed=(*segment.passed, *also)))
        return [*segments[:1], *reversed(ordered)]


def _residuals(facts: _Facts, program: ScheduledProgram, tail: Sequence[Eqn]) -> tuple[Var, ...]:
    """What the forward hands to the backward: inputs that it reads, what is saved, and gradients known early."""
    joint = facts.joint
    made = {*joint.cotangents}.union(*[eqn.outvars for eqn in tail])
    read = dict.fromkeys([v for v in facts.read_by(tail) if v in facts.inputs])
    read.update(dict.fromkeys([joint.values[value] for value in program.saved.tolist()]))
    read.update(dict.fromkeys([v for v in jaxprs.vars_of(joint.gradients) if v not in made]))
    return tuple([v for v in read if v not in facts.anywhere])


def _without_idle_trips(facts: _Facts, stretches: Sequence[_Stretch], saved: Set[Var]) -> list[_Stretch]:
    """The stretches without round trips that lead nowhere."""
    trips = facts.joint.round_trips
    if not trips:
        return list(stretches)
    passes = itertools.groupby(stretches, lambda stretch: stretch.is_late)
    there = [stretch for _, of_pass in passes for stretch in _without_returns(facts, list(of_pass), saved)]
    there = list(_with_estimates(facts, there)) if facts.estimated else there
    read = set(saved).union(*[facts.reads[eqn] for stretch in there for eqn in stretch.eqns if facts.is_on_trip[eqn]])
    idle = {trip.way_there for trip in trips if trip.stored not in read}
    return [_without(stretch, idle) for stretch in there]


def _with_estimates(facts: _Facts, stretches: Iterable[_Stretch]) -> Iterator[_Stretch]:
    """The stretches with estimates in the place of the products of the backward that read what comes back of a
    projection, which then does not come back."""
    trips, same = facts.estimated, facts.joint.restored_of
    back = {trip.way_back: trip.restored for trip in trips.values()}
    comes_back: set[Var] = set()
    for stretch in stretches:
        eqns = []
        for eqn in stretch.eqns if stretch.is_late else ():
            comes_back.difference_update(same[v] for v in eqn.outvars if v in same)
            read = [trips[v] for v in facts.reads[eqn] if v in comes_back]
            if eqn in back:
                comes_back.add(back[eqn])
            else:
                eqns.append(facts.estimate_of(eqn, read[0]) if read else eqn)
        yield dataclasses.replace(stretch, eqns=tuple(eqns)) if stretch.is_late else stretch


def _without_returns(facts: _Facts, stretches: Sequence[_Stretch], saved: Set[Var]) -> Iterator[_Stretch]:
    """Stretches of one pass without ways back to a value that is there: saved, made in the stretch, or made before and
    stored in the stretch."""
    trips = {trip.way_back: trip for trip in facts.joint.round_trips}
    before: set[Var] = set()
    for stretch in stretches:
        made, idle = set[Var](), set[Eqn]()
        for eqn in filter(facts.is_on_trip.__getitem__, stretch.eqns):
            trip = trips.get(eqn)
            if trip and _is_there(trip, saved, made, before):
                idle.add(eqn)
            made.update(eqn.outvars)
        yield _without(stretch, idle)
        before |= made


def _is_there(trip: RoundTrip, saved: Set[Var], made: Set[Var], before: Set[Var]) -> bool:
    """Whether the value of a round trip needs no way back in a stretch that has `made` some variables."""
    return trip.source in saved or trip.source in made or (trip.stored in made and trip.source in before)


def _without(stretch: _Stretch, idle: Set[Eqn]) -> _Stretch:
    if not idle or idle.isdisjoint(stretch.eqns):
        return stretch
    return dataclasses.replace(stretch, eqns=tuple([eqn for eqn in stretch.eqns if eqn not in idle]))
