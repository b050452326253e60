"""Schedules whose loops may leave values in the host's memory between their forward and their backward.

A copy over the link costs nothing while there is computation to hide it behind, and all of its time beyond. The search
knows prices, not capacities: a copy is told to take a share of its time, and the share is bisected to where the link is
just full (a Lagrangian relaxation of its capacity). The answer that really takes the least time counts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from jaxremat.backends.devices import Device
from jaxremat.base.compat import Var
from jaxremat.base.errors import ArgumentError
from jaxremat.graph.scheduled import ScheduledProgram
from jaxremat.loops.find import find
from jaxremat.planner.contract import Outcome, Planner, cheapest_within
from jaxremat.planner.schedules import SchedulePlanner
from jaxremat.planner.timed_loops import TimedLoopPlanner
from jaxremat.trace import jaxpr as jaxprs
from jaxremat.trace.joint import Joint
from jaxremat.trace.primal import Primal
from jaxremat.trace.round_trips import HOST, LOSSLESS, RoundTrip, transferred_bytes

SMALLEST_SHARE, LARGEST_SHARE = 1e-3, 4.0  # a copy that is all but free, and one that is as good as forbidden
_PROBES = 6  # halvings of the ratio between the two: to 14 %; benchmarks/constants.py


@dataclasses.dataclass(frozen=True)
class LinkTraffic:
    """What a schedule copies over the link.

    Attributes:
      out_bytes, back_bytes: to the host and from it.
      exposed_seconds: time of the copies that no computation hides.
    """

    out_bytes: int
    back_bytes: int
    exposed_seconds: float


class TransferPlanner:
    """Schedules with and without the host, for any budget.

    Args:
      primal: the program.
      device: what it runs on.
      host_budget_bytes: the most that may wait on the host; None for any amount.
      storages: other forms in which values may wait for the backward.

    Raises:
      ArgumentError: for a device without a link to a host's memory.
    """

    def __init__(
        self, primal: Primal, device: Device, host_budget_bytes: int | None, storages: tuple[str, ...] = LOSSLESS
    ) -> None:
        require_link(device)
        self.device = device
        self.host_budget_bytes = host_budget_bytes
        self._primal, self._storages = primal, storages
        timed = device.backend.times_loops and find(primal)
        self._planner: Any = TimedLoopPlanner if timed else SchedulePlanner
        self.own: Planner = self._planner(primal, device, storages)
        self.traits = self.own.traits
        self._with_host: dict[float, Planner] = {}
        self._told: dict[int, tuple[Outcome, Outcome]] = {}

    @property
    def unpermitted(self) -> Planner:
        """The planner without the host."""
        return self.own

    @property
    def plain(self) -> Outcome:
        """The program as it stands."""
        return self.own.plain

    def fit(self, replayed_bytes: int) -> Outcome:
        """The cheapest outcome within a replayed peak, transfers counted, or the one with the smallest peak."""
        found = [self.own.fit(replayed_bytes)]
        if not find(self._primal):
            return found[0]
        low, high = SMALLEST_SHARE, LARGEST_SHARE
        for _ in range(_PROBES):
            share = float(np.sqrt(low * high))
            outcome = self._at_share(share).fit(replayed_bytes)
            found += self._allowed([outcome])
            crowded = outcome.replayed_bytes <= replayed_bytes and self._is_too_much(outcome)
            low, high = (share, high) if crowded else (low, share)
        return cheapest_within(found, replayed_bytes)

    def least(self) -> Sequence[Outcome]:
        """Outcomes of small replayed peak."""
        each = self._allowed(self._at_share(SMALLEST_SHARE).least())
        return sorted([*self.own.least(), *each], key=lambda outcome: outcome.replayed_bytes)

    def near_misses(self, best: Outcome, cost: float, peak_bytes: int) -> Iterable[Outcome]:
        """Those without the host."""
        return self.own.near_misses(best, cost, peak_bytes)

    def _at_share(self, share: float) -> Planner:
        """The planner to which a copy takes a share of its time."""
        if share not in self._with_host:
            forms = (HOST.form, *self._storages)
            self._with_host[share] = self._planner(self._primal, at_share(self.device, share), forms)
        return self._with_host[share]

    def _is_too_much(self, outcome: Outcome) -> bool:
        """Whether the link, or the host, is more than full."""
        transfers = transfers_of(outcome, self.device)
        return transfers.exposed_seconds > 0 or transfers.out_bytes > self._most_bytes

    @property
    def _most_bytes(self) -> float:
        return np.inf if self.host_budget_bytes is None else self.host_budget_bytes

    def _allowed(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        """Outcomes within the host's budget, their time told with their transfers."""
        return [self._honest(o) for o in outcomes if transfers_of(o, self.device).out_bytes <= self._most_bytes]

    def _honest(self, outcome: Outcome) -> Outcome:
        """The outcome at the cost of the real link: one object per outcome."""
        if id(outcome) not in self._told:
            computation = outcome.cost if self.traits.predicts_time else computation_seconds(outcome)
            shown = transfers_of(outcome, self.device).exposed_seconds
            self._told[id(outcome)] = outcome, outcome.at_cost(computation + shown)
        return self._told[id(outcome)][1]


def require_link(device: Device) -> None:
    """Raises ArgumentError for a device without a link to a host's memory."""
    if not device.host_bytes_per_second:
        raise ArgumentError(
            f"allow='offload': the memory of target {device.name!r} is the host's own, there is no link to move"
            " values over. Plan for an accelerator, or without 'offload'"
        )


def transfers_of(outcome: Outcome, device: Device) -> LinkTraffic:
    """What an outcome copies, and what of it shows on a device."""
    out, back = _copied_bytes(outcome)
    rate = device.sustained_host_bytes_per_second or np.inf
    if trips := _taken(outcome.problem.joint, outcome.program):
        return LinkTraffic(out, back, _waited_seconds(outcome, trips, rate))
    early, late = np.split(_node_seconds(outcome)[outcome.program.steps], [outcome.program.backward_start])
    exposed = max(out / rate - early.sum(), 0.0) + max(back / rate - late.sum(), 0.0)
    return LinkTraffic(out, back, float(exposed))


def _waited_seconds(outcome: Outcome, trips: Sequence[RoundTrip], rate: float) -> float:
    """What a schedule waits for copies outside of loops: each begins where it stands, once the link is free in its
    direction, and is there by the barrier that holds it: the next one of those to the host, the last one before the
    value is read of those back."""
    program, joint = outcome.program, outcome.problem.joint
    seconds = _node_seconds(outcome)[program.steps]
    seconds[joint.on_a_trip[program.steps]] = 0
    clock = np.concatenate([[0.0], np.cumsum(seconds) * outcome.timeline.cost / max(seconds.sum(), 1e-30)])
    node_of = {id(eqn): node for node, eqn in enumerate(joint.eqns)}
    there = {node_of[id(trip.way_there)]: trip for trip in trips}
    back = {node_of[id(trip.way_back)]: trip for trip in trips}
    free, arrives, waited = {True: 0.0, False: 0.0}, dict[int, float](), 0.0
    for step, node in enumerate(program.steps.tolist()):
        now = clock[step] + waited
        waited += max(arrives.pop(step, 0.0) - now, 0.0)
        is_late = step >= program.backward_start
        trip = (back if is_late else there).get(node)
        if trip is None:
            continue
        begins = max(free[is_late], clock[step] + waited)
        free[is_late] = begins + jaxprs.array_bytes(trip.stored) / rate
        held = _held_at(outcome, step, trip.restored if is_late else None)
        arrives[held] = max(arrives.get(held, 0.0), free[is_late])
    return float(waited)


def _held_at(outcome: Outcome, step: int, read: Var | None) -> int:
    """The step before whose barrier the copy of a step is there: the next one, or the last one before it is read."""
    joint, program = outcome.problem.joint, outcome.program
    barriers = [barrier for barrier in program.barriers if barrier > step]
    if read is None:
        return barriers[0] if barriers else program.backward_start
    following = enumerate(program.steps[step + 1 :].tolist(), step + 1)
    reader = next((at for at, node in following if read in joint.eqns[node].invars), program.steps.size - 1)
    return max((barrier for barrier in barriers if barrier <= reader), default=reader)


def computation_seconds(outcome: Outcome) -> float:
    """Time of a replayed outcome without its transfers; what is timed by its kernels has none in it."""
    return float(_node_seconds(outcome)[outcome.program.steps].sum())


def _node_seconds(outcome: Outcome) -> np.ndarray:
    """[N] time of each equation, copies inside of loops aside."""
    problem = outcome.problem
    inside = np.asarray([sum(transferred_bytes(eqn)) for eqn in problem.joint.eqns], float)
    inside[problem.joint.on_a_trip] = 0
    rate = problem.device.host_bytes_per_second or np.inf
    return np.maximum(problem.graph.costs - inside / rate, 0.0)


def bytes_on_host(joint: Joint, program: ScheduledProgram) -> int:
    """What a scheduled program leaves in the host's memory: what waits there, and what loops put there."""
    out = sum(transferred_bytes(trip.way_there)[0] for trip in _taken(joint, program))
    return out + sum(there for there, _ in _copied_inside(joint))


def _copied_bytes(outcome: Outcome) -> tuple[int, int]:
    """(to the host, from it): what waits there, as often as it is fetched, and what loops copy by themselves."""
    joint, program = outcome.problem.joint, outcome.program
    fetched = np.bincount(program.steps[program.backward_start :], minlength=len(joint.eqns))
    position = {id(eqn): node for node, eqn in enumerate(joint.eqns)}
    ways_back = [trip.way_back for trip in _taken(joint, program)]
    back = sum(transferred_bytes(eqn)[1] * int(fetched[position[id(eqn)]]) for eqn in ways_back)
    return bytes_on_host(joint, program), back + sum(again for _, again in _copied_inside(joint))


def _copied_inside(joint: Joint) -> list[tuple[int, int]]:
    """(to the host, from it) of every equation that is on no round trip."""
    return [transferred_bytes(eqn) for eqn, is_trip in zip(joint.eqns, joint.on_a_trip) if not is_trip]


def _taken(joint: Joint, program: ScheduledProgram) -> list[RoundTrip]:
    """The round trips over the link, outside of loops, whose values wait on the host."""
    saved = {joint.values[value] for value in program.saved.tolist()}
    return [trip for trip in joint.round_trips if trip.form == HOST.form and trip.stored in saved]


def at_share(device: Device, share: float) -> Device:
    """A device whose link takes a share of the time that copies really take."""
    assert device.sustained_host_bytes_per_second  # checked before
    return dataclasses.replace(device, host_bytes_per_second=device.sustained_host_bytes_per_second / share)
