"""Which planner answers a request."""

from __future__ import annotations

import functools
from collections.abc import Set

from jaxremat.backends.devices import Device
from jaxremat.base.errors import ArgumentError, EmissionError
from jaxremat.loops.find import find
from jaxremat.planner.checkpoints import PiecePlanner
from jaxremat.planner.contract import Planner
from jaxremat.planner.narrow import NarrowPlanner
from jaxremat.planner.own_names import OwnNamesPlanner
from jaxremat.planner.schedules import SchedulePlanner
from jaxremat.planner.solver_schedules import SolverPlanner
from jaxremat.planner.timed import TimedPlanner
from jaxremat.planner.timed_bytes import TimedBytesPlanner
from jaxremat.planner.timed_loops import TimedLoopPlanner
from jaxremat.planner.timed_transfers import TimedTransferPlanner
from jaxremat.planner.transfers import TransferPlanner
from jaxremat.solvers.auto import Auto
from jaxremat.solvers.base import Solver
from jaxremat.trace.origins import names_in
from jaxremat.trace.primal import Primal
from jaxremat.trace.round_trips import IN_BYTES, LOSSLESS, PERMITTED, PROJECTED, permitted


def planner_for(
    primal: Primal,
    device: Device,
    solver: Solver,
    emit: str,
    seed: int,
    allow: Set[str] = frozenset(),
    host_budget_bytes: int | None = None,
) -> Planner:
    """The planner of a program for a form of emission.

    Args:
      primal, device: the program, and what it runs on.
      solver: "auto" for the default search; another one decides schedules alone.
      emit: one of `decision.FORMS`.
      seed: for solvers that draw random numbers.
      allow: "offload" for values that may wait in the host's memory, at most `host_budget_bytes` of it; "narrow" for
        values that may be rounded meanwhile, where they do not wait on the host; "project" for random projections of
        what gradients of weights read.

    Raises:
      ArgumentError: for a solver that does not decide this form, or does not take this program.
      EmissionError: if the program has nothing that the form could save.
    """
    for permission in sorted(allow & {"offload", *PERMITTED}):
        if emit != "schedule" or solver.name != Auto.name:
            raise ArgumentError(
                f"allow={permission!r} takes emit='schedule' and solver='auto': in others values wait as they are"
            )
    if solver.name != Auto.name:
        if emit != "schedule":
            raise ArgumentError(f"solver={solver.name!r} decides schedules: emit='schedule', not {emit!r}")
        return SolverPlanner(primal, device, solver, seed)
    if emit != "schedule":
        return {"names": _names_planner, "segments": _segments_planner}[emit](primal, device)
    if allow.isdisjoint(PERMITTED):
        return _scheduling(primal, device, LOSSLESS, allow, host_budget_bytes)
    forms = [LOSSLESS, *((*LOSSLESS, *inexact) for inexact in permitted(allow))]
    return NarrowPlanner([functools.partial(_scheduling, primal, device, f, allow, host_budget_bytes) for f in forms])


def _scheduling(
    primal: Primal, device: Device, storages: tuple[str, ...], allow: Set[str], host_budget_bytes: int | None
) -> Planner:
    """The planner of schedules whose values may wait in some forms, on the host too where that is allowed; outside of
    loops they wait rounded, or there."""
    tied = device.backend.ties_transfers and not find(primal)
    packing = tuple(form for form in storages if form in (*IN_BYTES, PROJECTED.form))
    if tied and packing:
        return TimedBytesPlanner(primal, device, packing)
    if "offload" in allow and not tied:
        return TransferPlanner(primal, device, host_budget_bytes, storages)
    if "offload" in allow and storages == LOSSLESS:
        return TimedTransferPlanner(primal, device, host_budget_bytes)
    if find(primal):
        return (TimedLoopPlanner if device.backend.times_loops else SchedulePlanner)(primal, device, storages)
    return (TimedPlanner if device.backend.barrier_parts else SchedulePlanner)(primal, device, storages)


def _segments_planner(primal: Primal, device: Device) -> Planner:
    return PiecePlanner(primal, device, "segments", outer=False)


def _names_planner(primal: Primal, device: Device) -> Planner:
    own = names_in(primal.raw) if primal.raw is not None else ()
    if own:
        return OwnNamesPlanner(primal, device, tuple(own))
    planner = PiecePlanner(primal, device, "names", outer=not device.backend.names_in_pieces)
    if not planner.nameable.any():
        raise EmissionError(
            "no value of this program can be saved by name: the backward reads every one of them before a name could"
            ' be put. emit="segments" or emit="schedule" can plan it.'
        )
    return planner
