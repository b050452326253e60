"""Plans that are kept on disk from one process to the next: off until a folder is named.

The environment variable `JAXREMAT_PLAN_CACHE` names it. A plan is found by its program, shapes, budget, options, target
and the versions of all that decides about it. Files are put in place whole, so that any number of processes may share a
folder; one that is damaged is passed over, with a warning, and written again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
import threading
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from jaxremat.backends.memory import usable_bytes
from jaxremat.base.budget import DEVICE, Budget
from jaxremat.base.errors import JaxrematError
from jaxremat.planning.load import restored
from jaxremat.planning.plan import Plan
from jaxremat.planning.request import Request
from jaxremat.planning.storage import parse_plan, plan_text
from jaxremat.solvers.registry import solver_parameters
from jaxremat.trace.joint import read_primal

logger = logging.getLogger("jaxremat")

FOLDER = "JAXREMAT_PLAN_CACHE"
_DECIDE = ("jax", "jaxlib", "jaxremat", "scipy")


def cached(request: Request, bound: tuple[Budget | None, Budget | None], make: Callable[[], Plan]) -> Plan:
    """The plan of a request from the folder of plans, if one is named; otherwise, the one that `make` makes.

    Args:
      request: what is planned.
      bound: its budget, and what it may keep.
      make: makes the plan.
    """
    folder = os.environ.get(FOLDER)
    if not folder:
        return make()
    path = Path(folder).expanduser() / f"{_key(request, bound)}.json"
    found = _read(path, request)
    if found is None:
        found = make()
        _write(path, plan_text(found))
    return found


def _key(request: Request, bound: tuple[Budget | None, Budget | None]) -> str:
    primal = read_primal(request.fun, request.args, request.argnums, request.has_aux)
    device = request.device
    rates = [
        (field.name, getattr(device, field.name)) for field in dataclasses.fields(device) if field.name != "backend"
    ]
    parts = (
        primal.fingerprint, primal.shardings, request.argnums, request.has_aux, bound, rates, request.solver.name,
        usable_bytes(device) if DEVICE in bound else None, solver_parameters(request.solver), request.emit,
        request.verify, request.seed, sorted(request.allow), request.host_budget_bytes, request.refuses,
        os.environ.get("XLA_FLAGS"), [_installed(name) for name in _DECIDE],
    )  # fmt: skip
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _installed(name: str) -> str:
    try:
        return version(name)
    except ImportError:
        return "unknown"


def _read(path: Path, request: Request) -> Plan | None:
    try:
        return restored(parse_plan(path.read_text(), str(path)), request.fun, request.args, {})
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
