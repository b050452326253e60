"""What finders return: parts of a program that they recognised, and what computes them otherwise."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

from jaxremat.base.compat import Eqn, Jaxpr, Literal, Var


@dataclasses.dataclass(frozen=True, eq=False)
class Finding:
    """A part of a program that a finder recognised.

    Attributes:
      kind: what it is, such as "softmax attention".
      where: source line of its main equation.
      shape: of the large value in it.
      large_bytes: of that value.
      reason: why it is left as it is; empty if it is replaced.
      reads, gives: variables that the replacement needs and provides.
      emit: computes the values of `gives` from those of `reads`.
    """

    kind: str
    where: str
    shape: tuple[int, ...]
    large_bytes: int
    reason: str = ""
    reads: tuple[Var, ...] = ()
    gives: tuple[Var, ...] = ()
    emit: Callable[[list[Any]], list[Any]] | None = None

    @property
    def replaced(self) -> bool:
        return not self.reason

    def __str__(self) -> str:
        verdict = "replaced" if self.replaced else f"left: {self.reason}"
        return f"{self.kind} {list(self.shape)}, {self.large_bytes / 2**20:.1f} MiB, at {self.where}: {verdict}"


class Findings(list[Finding]):
    """What was found in a function, in program order."""

    def __str__(self) -> str:
        return "\n".join(map(str, self)) or "nothing found"


class Finder(Protocol):
    """Recognises parts of one jaxpr."""

    def body_of(self, eqn: Eqn) -> Jaxpr | None:
        """The body of an equation that is inlined before the finder looks; None for one that stays."""

    def __call__(self, jaxpr: Jaxpr) -> list[Finding]:
        """What is recognised, in program order."""


def readers_of(jaxpr: Jaxpr) -> dict[Var, list[Eqn | None]]:
    """Who reads each variable; None stands for the result of the jaxpr."""
    readers: dict[Var, list[Eqn | None]] = {}
    for eqn in [*jaxpr.eqns, None]:
        for atom in jaxpr.outvars if eqn is None else eqn.invars:
            if not isinstance(atom, Literal):
                readers.setdefault(atom, []).append(eqn)
    return readers


def producers_of(jaxpr: Jaxpr) -> dict[Var, Eqn]:
    """For each variable that an equation defines, that equation."""
    return {var: eqn for eqn in jaxpr.eqns for var in eqn.outvars}
