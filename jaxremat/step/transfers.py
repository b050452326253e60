"""Outcomes of which pairs of scans may leave values in the host's memory, between their first and their second scan.

A scan copies while it computes: an iteration's values travel under the next one. A scan whose copies take longer than
its computation waits for the link. As in `planner.transfers`, copies are told to take a share of their time, and the
share is bisected to where no scan waits; the outcome that really takes the least time counts.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from jaxremat.backends.devices import Device
from jaxremat.base.budget import format_bytes
from jaxremat.base.errors import ArgumentError
from jaxremat.cost.pricing import shares
from jaxremat.planner.correction import Correction
from jaxremat.planner.transfers import LARGEST_SHARE, SMALLEST_SHARE, at_share, require_link
from jaxremat.step.outcome import Posed, StepOutcome
from jaxremat.step.planner import ProgramPlanner, SearchFor, by_peak, predict, step_planner
from jaxremat.step.program import StepProgram
from jaxremat.trace.round_trips import HOST, LOSSLESS, transferred_bytes, waiting_bytes

_PROBES = 4  # halvings of the ratio between two shares: to 70 %


class HostPlanner:
    """Outcomes with and without the host, for any budget.

    Args:
      program: the step.
      device: what it runs on.
      search_for: as of `ProgramPlanner`.
      host_budget_bytes: the most of the host's memory that the step may take; None for any amount.

    Raises:
      ArgumentError: for a device without a link to a host's memory, and where arguments and results that lie there
        take more.
    """

    def __init__(
        self, program: StepProgram, device: Device, search_for: SearchFor, host_budget_bytes: int | None = None
    ) -> None:
        require_link(device)
        self._device, self._program = device, program
        self._most_bytes = np.inf if host_budget_bytes is None else host_budget_bytes
        self._planner = functools.partial(step_planner, program, search_for=search_for)
        self._own = self._planner(device)
        self._at_share: dict[float, ProgramPlanner] = {}
        self._told: dict[StepOutcome, StepOutcome] = {}
        self._require_room()

    @property
    def plain(self) -> StepOutcome:
        """The step as it stands."""
        return self._own.plain

    @property
    def unpermitted(self) -> ProgramPlanner:
        """The planner without the host."""
        return self._own

    def predicted(self, limit: int) -> Correction[StepOutcome, None]:
        """The cheapest outcome whose predicted peak is within a limit."""
        correction = self._own.predicted(limit)
        if not self._own.has_pairs:
            return correction
        low, high = SMALLEST_SHARE, LARGEST_SHARE
        for _ in range(_PROBES):
            share = float(np.sqrt(low * high))
            found = self._with_host(share).predicted(limit)
            outcome = (found.best or found.smallest).candidate
            correction = correction.with_more(self._allowed([outcome]), predict, limit)
            crowded = found.best is not None and (self._waits(outcome) or not self._has_room(outcome))
            low, high = (share, high) if crowded else (low, share)
        return correction

    def smallest_few(self, number: int) -> list[StepOutcome]:
        """Outcomes of small replayed peak, no two alike."""
        hosted = self._allowed(self._with_host(SMALLEST_SHARE).smallest_few(number))
        return sorted([*self._own.smallest_few(number), *hosted], key=by_peak)

    def _with_host(self, share: float) -> ProgramPlanner:
        """The planner to which a copy takes a share of its time."""
        if share not in self._at_share:
            forms = (*LOSSLESS, HOST.form)
            self._at_share[share] = self._planner(at_share(self._device, share), storages=forms)
        return self._at_share[share]

    def _require_room(self) -> None:
        held_bytes = self._host_bytes(self.plain)
        if held_bytes > self._most_bytes:
            raise ArgumentError(
                f"host_budget={format_bytes(int(self._most_bytes))} is less than what the step's own arguments and"
                f" results take of the host's memory, {format_bytes(held_bytes)}: raise it, donate what lies there, or"
                " place less of it there"
            )

    def _allowed(self, outcomes: Sequence[StepOutcome]) -> list[StepOutcome]:
        """Outcomes within the host's budget, at the cost of the real link."""
        return [self._honest(outcome) for outcome in outcomes if self._has_room(outcome)]

    def _has_room(self, outcome: StepOutcome) -> bool:
        return self._host_bytes(outcome) <= self._most_bytes

    def _host_bytes(self, outcome: StepOutcome) -> int:
        """What an outcome takes of the host's memory for one device: arguments that lie there, results, and what waits;
        a donated buffer once."""
        joint, program = outcome.posed.joint, self._program
        held = sum(size for size, reused in zip(program.host_input_bytes, program.reused) if not reused)
        filled = np.asarray(list(map(waiting_bytes, joint.eqns)), float) * shares(joint).run
        return held + int(filled[outcome.schedule.steps].sum())

    def _waits(self, outcome: StepOutcome) -> bool:
        """Whether any scan waits for the link."""
        computing, copying = _seconds(outcome.posed, self._device)
        return bool((copying > computing).any())

    def _honest(self, outcome: StepOutcome) -> StepOutcome:
        """The outcome at the cost of the real link: one object per outcome."""
        if outcome not in self._told:
            seconds = np.maximum(*_seconds(outcome.posed, self._device))
            graph = dataclasses.replace(outcome.posed.graph, costs=seconds)
            schedule = dataclasses.replace(outcome.schedule, cost=float(seconds[outcome.schedule.steps].sum()))
            posed = dataclasses.replace(outcome.posed, graph=graph, device=self._device)
            self._told[outcome] = StepOutcome(posed, schedule, outcome.decision)
        return self._told[outcome]


def _seconds(posed: Posed, device: Device) -> tuple[np.ndarray, np.ndarray]:
    """[N] what each node computes, and what it copies over a device's link."""
    copied = np.asarray([sum(transferred_bytes(eqn)) for eqn in posed.joint.eqns], float)
    told, real = posed.device.host_bytes_per_second or np.inf, device.sustained_host_bytes_per_second or np.inf
    return np.maximum(posed.graph.costs - copied / told, 0.0), copied / real
