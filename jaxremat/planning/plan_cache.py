"""Plans that were made before, in this process or, where a folder is named, in another one.

A plan is found by its program, shapes, budget, options, target and the versions of all that decides about it. The
environment variable `JAXREMAT_PLAN_CACHE` names the folder. Files are put in place whole, so that any number of
processes may share it; one that is damaged is passed over, with a warning, and written again.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import logging
import os
import threading
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

from jaxremat.backends.devices import Device
from jaxremat.backends.memory import usable_bytes
from jaxremat.base.budget import DEVICE, Budget
from jaxremat.base.errors import JaxrematError
from jaxremat.planning.load import checked, restored_for
from jaxremat.planning.memory import PLANS
from jaxremat.planning.plan import Plan
from jaxremat.planning.request import Request
from jaxremat.planning.signature import signature_of
from jaxremat.planning.storage import StoredPlan, parse_plan, plan_text, stored_plan
from jaxremat.planning.warnings import loss_warnings
from jaxremat.solvers.base import Solver
from jaxremat.solvers.registry import solver_parameters
from jaxremat.trace.own_rules import own_rules

logger = logging.getLogger("jaxremat")

FOLDER = "JAXREMAT_PLAN_CACHE"
_DECIDE = ("jax", "jaxlib", "jaxremat", "scipy")


@dataclasses.dataclass(frozen=True, eq=False)
class Kept[P, S]:
    """How plans of a kind are kept.

    Attributes:
      stored: from a plan to data, which keeps no program alive.
      restored: from that to the plan of the program that is asked for.
      text: from a plan to what its file holds.
      read: from that, and the path of the file, to the plan.
    """

    stored: Callable[[P], S]
    restored: Callable[[S], P]
    text: Callable[[P], str]
    read: Callable[[str, str], P]


def cached(request: Request, bound: tuple[Budget | None, Budget | None], make: Callable[[], Plan]) -> Plan:
    """The plan of a request as it was made before; otherwise, the one that `make` makes.

    Args:
      request: what is planned.
      bound: its budget, and what it may keep.
      make: makes the plan.
    """
    kept = Kept[Plan, StoredPlan](
        stored=stored_plan,
        restored=functools.partial(restored_for, request),
        text=plan_text,
        read=lambda text, path: checked(restored_for(request, parse_plan(text, path))),
    )
    return remembered(_question(request, bound), request.solver, request.device, kept, make)


def remembered[P, S](
    question: Sequence[Any], solver: Solver, device: Device, kept: Kept[P, S], make: Callable[[], P]
) -> P:
    """A plan as it was made before; otherwise, the one that `make` makes.

    Args:
      question: all that decides about the plan, the solver, the device, versions of libraries and XLA's flags aside.
      solver: what solves: one that is defined again is asked again.
      device: what is planned for.
      kept: how such plans are kept.
      make: makes the plan.
    """
    key, folder = _digest(question, solver, device), os.environ.get(FOLDER)
    path = Path(folder).expanduser() / f"{key}.json" if folder else None
    here: list[P] = []

    def decided() -> S:
        here.append(_from(path, kept, make) if path else make())
        return kept.stored(here[0])

    stored = PLANS.get((key, path, type(solver)), decided)
    return here[0] if here else kept.restored(stored)


def asked(device: Device, *budgets: Budget | None) -> tuple[Any, ...]:
    """Budgets, and what one of all of the device means."""
    return budgets, usable_bytes(device) if DEVICE in budgets else None


def _from[P, S](path: Path, kept: Kept[P, S], make: Callable[[], P]) -> P:
    """The plan in a file; where there is none, it is made and written."""
    found = _read(path, kept)
    if found is None:
        found = make()
        _write(path, kept.text(found))
    return found


def _question(request: Request, bound: tuple[Budget | None, Budget | None]) -> Sequence[Any]:
    primal = request.primal
    return (
        primal.fingerprint, list(own_rules(primal.jaxpr.eqns)), primal.shardings, signature_of(request.args),
        jax.sharding.get_abstract_mesh(),
        request.argnums, request.has_aux, *asked(request.device, *bound), request.emit, request.verify, request.seed,
        sorted(request.allow), request.host_budget_bytes, request.refuses,
        loss_warnings(primal, request.has_aux) if request.is_loss else None,
    )  # fmt: skip


def _digest(question: Sequence[Any], solver: Solver, device: Device) -> str:
    names = (field.name for field in dataclasses.fields(device))
    rates = [(name, getattr(device, name)) for name in names if name != "backend"]
    versions = [_installed(name) for name in _DECIDE]
    parts = *question, solver.name, solver_parameters(solver), rates, os.environ.get("XLA_FLAGS"), versions
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _installed(name: str) -> str:
    try:
        return version(name)
    except ImportError:
        return "unknown"


def _read[P, S](path: Path, kept: Kept[P, S]) -> P | None:
    try:
        return kept.read(path.read_text(), str(path))
    except FileNotFoundError:
        return None
    except (JaxrematError, OSError, UnicodeDecodeError) as error:
        logger.warning("%s is passed over, and made again: %s", path, error)
        return None


def _write(path: Path, text: str) -> None:
    """Puts a file in place, whole or not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(f".{os.getpid()}.{threading.get_ident()}")
        fresh.write_text(text)
        fresh.replace(path)
    except OSError as error:
        logger.warning("the plan is not kept in %s: %s", path.parent, error)
