"""The contract of every planner: a program and a number of bytes in, an outcome with its form and its numbers out."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Sequence
from typing import Protocol, Self, runtime_checkable

from jaxremat.graph.replay import Timeline
from jaxremat.graph.scheduled import ScheduledProgram
from jaxremat.planner.decision import Form
from jaxremat.planner.problem import Problem

TOLD_APART = 1.01  # where times differ less than predictions can tell, other things decide; benchmarks/constants.py


class Outcome(Protocol):
    """What a planner found.

    `replayed_bytes` and `cost` (seconds) are the replay's; `peak_bytes` and `timeline` are predicted for the program as
    the target compiles it.
    """

    @property
    def problem(self) -> Problem: ...
    @property
    def program(self) -> ScheduledProgram: ...
    @property
    def form(self) -> Form: ...
    @property
    def replayed_bytes(self) -> int: ...
    @property
    def cost(self) -> float: ...
    @property
    def timeline(self) -> Timeline: ...
    @property
    def peak_bytes(self) -> int: ...
    def at_cost(self, seconds: float) -> Self:
        """The same at another cost."""


@dataclasses.dataclass(frozen=True)
class Traits:
    """What the outcomes of a planner are good for.

    Attributes:
      predicts_time: whether `cost` is the time of the program as compiled: the fastest is wanted, not what just fits.
      peak_doubt: as far as predicted peaks are off, as a part of them: so much more may be tried.
      may_leave_alone: whether a program that fits as it is stays as it is.
    """

    predicts_time: bool = False
    peak_doubt: float = 0.0
    may_leave_alone: bool = True


class Planner(Protocol):
    """Outcomes of one form for one program on one device, for any number of budgets; equal outcomes are one object."""

    @property
    def plain(self) -> Outcome:
        """The program without recomputation, whose compiled peak is the baseline."""

    @property
    def traits(self) -> Traits: ...

    def fit(self, replayed_bytes: int) -> Outcome:
        """The cheapest outcome whose replayed peak is within a number of bytes, or the one with the smallest peak."""

    def least(self) -> Sequence[Outcome]:
        """Outcomes of small replayed peak, the smallest first, or the one that the compiler surely holds to: what is
        tried where the rest does not fit. The same ones whatever was asked before."""

    def near_misses(self, best: Outcome, cost: float, peak_bytes: int) -> Iterable[Outcome]:
        """Outcomes other than `best` that may cost less than is said and fit in a number of bytes all the same, the
        likeliest first."""


@runtime_checkable
class SavingPlanner(Protocol):
    """A planner that bounds what the forward leaves to the backward, not the peak."""

    @property
    def plain(self) -> Outcome: ...

    def leaving(self, saved_bytes: int) -> Outcome:
        """The cheapest outcome whose forward leaves at most so many bytes to the backward, inputs aside."""


@runtime_checkable
class PermittedPlanner(Protocol):
    """A planner with a permission, such as to let values wait on the host."""

    @property
    def unpermitted(self) -> Planner:
        """The planner of the same program without the permission."""


def without_permission(planner: Planner) -> Planner | None:
    """The planner of the same program with one permission less; None where there is none."""
    return planner.unpermitted if isinstance(planner, PermittedPlanner) else None


def saving(planner: Planner) -> SavingPlanner | None:
    """A planner as one that bounds what is left to the backward, where it is one."""
    return planner if isinstance(planner, SavingPlanner) else None


def left_behind(outcome: Outcome) -> int:
    """Bytes that the forward leaves to the backward, inputs of the program aside."""
    return int(outcome.problem.graph.value_bytes[outcome.program.saved].sum())


class Ranked(Protocol):
    """What its replay ranks."""

    @property
    def replayed_bytes(self) -> int: ...
    @property
    def cost(self) -> float: ...


def cheapest_within[O: Ranked](outcomes: Sequence[O], replayed_bytes: int) -> O:
    """The cheapest outcome whose replayed peak is within a number of bytes, or the one with the smallest peak."""
    within = [outcome for outcome in outcomes if outcome.replayed_bytes <= replayed_bytes]
    if not within:
        return min(outcomes, key=lambda outcome: (outcome.replayed_bytes, outcome.cost))
    return min(within, key=lambda outcome: (outcome.cost, outcome.replayed_bytes))


def fastest_bytes(plain: Outcome, outcomes: Iterable[Outcome]) -> int:
    """The replayed peak of the fastest of some outcomes that need new memory, or of a larger one that cannot be told
    apart from it; no bound where the program as it stands needs none."""
    device, resident_bytes = plain.problem.device, plain.problem.graph.resident_bytes
    if not device.first_touch_seconds(plain.replayed_bytes - resident_bytes):
        return sys.maxsize
    rate = device.first_touch_seconds_per_byte
    timed = [(each.cost + rate * each.replayed_bytes, each.replayed_bytes) for each in (plain, *outcomes)]
    least = min(seconds for seconds, _ in timed)
    fastest = max(peak_bytes for seconds, peak_bytes in timed if seconds <= TOLD_APART * least)
    return max(fastest, resident_bytes + (device.backend.reused_bytes or 0))
