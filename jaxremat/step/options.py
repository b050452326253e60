"""What `jaxremat.jit` was asked for."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from jaxremat.backends.devices import Device, resolve_target
from jaxremat.base.budget import Budget, parse_budget
from jaxremat.planner.solver_schedules import require_graphs
from jaxremat.planning.plan_cache import asked
from jaxremat.planning.request import VERIFICATIONS, host_budget_bytes, require_one_of
from jaxremat.solvers.base import Solver


@dataclasses.dataclass(frozen=True)
class StepOptions:
    """What `jaxremat.jit` was asked for, the function and its arguments aside; checked.

    Raises:
      ArgumentError: for an option that cannot be understood.
    """

    budget: Budget
    target: str | None
    solver: Solver
    verify: str
    allow: frozenset[str]
    host_budget: int | str | None
    seed: int

    def __post_init__(self) -> None:
        parse_budget(self.budget)
        require_one_of("verify", self.verify, VERIFICATIONS)
        require_graphs(self.solver)
        host_budget_bytes(self.host_budget, self.allow)

    @functools.cached_property
    def device(self) -> Device:
        return resolve_target(self.target)

    @property
    def question(self) -> tuple[Any, ...]:
        """All that decides about a plan, the step, solver and device aside."""
        allowed = sorted(self.allow), self.host_budget
        return *asked(self.device, self.budget), self.verify, *allowed, self.seed

    def is_host_memory(self, kind: str | None) -> bool:
        """Whether a kind of memory is the host's, seen from the target."""
        return kind is not None and self.device.is_host_memory(kind)
