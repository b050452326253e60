"""What goes wrong, by name. Every message carries the numbers and the remedy."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any


class JaxrematError(Exception):
    """Base class of every error that jaxremat raises on purpose."""


@dataclasses.dataclass(frozen=True)
class Occupant:
    """What is live at a peak.

    Attributes:
      name: what it is.
      path: module path, or empty.
      source: the line of the user's program, or empty.
      bytes: how much it takes, on one device.
    """

    name: str
    path: str
    source: str
    bytes: int


class BudgetError(JaxrematError):
    """No schedule fits in the budget.

    Attributes:
      min_peak_bytes: the smallest peak that was really reached, in bytes.
      budget_bytes: the budget that was asked for, in bytes.
      occupants: what is live at that peak, the largest first and the rest as one; their bytes add up to it. Empty for
        graphs, whose nodes have no program.
    """

    def __init__(
        self, message: str, *, min_peak_bytes: int, budget_bytes: int, occupants: Sequence[Occupant] = ()
    ) -> None:
        super().__init__(message)
        self.min_peak_bytes = int(min_peak_bytes)
        self.budget_bytes = int(budget_bytes)
        self.occupants = tuple(occupants)

    def __reduce__(self) -> tuple[Any, ...]:
        rebuilt = functools.partial(
            BudgetError,
            min_peak_bytes=self.min_peak_bytes,
            budget_bytes=self.budget_bytes,
            occupants=self.occupants,
        )
        return rebuilt, self.args


class PlanMismatchError(JaxrematError):
    """A plan meets a program, or arguments, that it was not made for."""


class EmissionError(JaxrematError):
    """A form of emission cannot express a plan."""


class GradientError(JaxrematError):
    """A planned gradient differs from the plain one."""


class GraphError(JaxrematError, ValueError):
    """A graph or chain is malformed: cyclic, out of range, or of unequal lengths."""


class ArgumentError(JaxrematError, ValueError):
    """An argument cannot be understood; the message names what is accepted."""


class UnplannableError(ArgumentError):
    """A function has to run as it is written: decorators leave it so, and plans refuse it."""


class TargetError(JaxrematError):
    """A target cannot be compiled for on this machine; the message names what to install."""


class PlanningInterrupted(KeyboardInterrupt):
    """Planning was interrupted by whoever waited for it.

    Attributes:
      plan: the best plan of those that had been compiled and fit; None where there was none.
    """

    def __init__(self, plan: Any) -> None:
        super().__init__(plan)
        self.plan = plan

    def __str__(self) -> str:
        return "the best plan so far is in this error's .plan" if self.plan else "no plan had been compiled yet"
