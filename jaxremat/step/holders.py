"""Who holds what while a step is at its peak: its arguments by path, and what it computes by kind."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from jaxremat.base.budget import format_bytes
from jaxremat.base.compat import Var
from jaxremat.step.program import StepProgram
from jaxremat.trace import jaxpr as jaxprs

_ROLES = (
    ("counter", r"(^|/)(step|count|iteration)$"),
    ("averages", r"ema|averag|avg|teacher|shadow|polyak|target"),
    ("optimizer state", r"opt|adam|moment|\bmu\b|\bnu\b|trace|accum"),
    ("statistics", r"stats"),
    ("random key", r"rng|\bkey\b|dropout"),
    ("parameters", r"param|weight|model|module|adapter|lora"),
)
"""What people call the parts of a state; only words of the report hang on it."""
_MOST_PARTS = 8  # lines of a display


@dataclasses.dataclass(frozen=True)
class ArgumentGroup:
    """Leaves of one part of one argument.

    Attributes:
      name: its path, such as `state/opt`.
      role: what it is, as people say: parameters, optimizer state, averages, batch ...
      size_bytes: on one device.
      donated_bytes: of leaves whose buffers results take over.
      idle_bytes: of leaves that a result could take over, if they were donated.
    """

    name: str
    role: str
    size_bytes: int
    donated_bytes: int
    idle_bytes: int

    @property
    def sentence(self) -> str:
        """`optimizer state (state/opt), donated`."""
        named = f"{self.role} ({self.name})" if self.role != self.name else self.name
        return f"{named}, donated" if self.donated_bytes > self.size_bytes / 2 else named


def argument_groups(program: StepProgram) -> tuple[ArgumentGroup, ...]:
    """The arguments of a step by part, the largest first."""
    read = _first_reads(program)
    parts = _parts(program.names)
    rows = zip(parts, program.input_bytes, program.reused, program.reusable, program.donated, read, strict=True)
    groups: dict[str, list[tuple[Any, ...]]] = {}
    for part, *row in rows:
        groups.setdefault(part, []).append(tuple(row))
    made = [_group(name, members) for name, members in groups.items()]
    return tuple(sorted(made, key=lambda group: -group.size_bytes))


def donation_warnings(groups: Iterable[ArgumentGroup]) -> tuple[str, ...]:
    """One warning per part of a state that the step returns anew without giving its buffers up."""
    return tuple(
        f"{group.name} is not donated, though results of the same shapes could take its place:"
        f" {format_bytes(group.idle_bytes)} more than needed; donate it with donate_argnums or donate_argnames"
        for group in groups
        if group.idle_bytes > 0 and group.role not in ("batch", "random key")
    )


def _group(name: str, members: Sequence[tuple[Any, ...]]) -> ArgumentGroup:
    size, donated, idle = (
        sum(row[0] for row in members if chosen(row))
        for chosen in (lambda row: True, lambda row: row[1], lambda row: row[2])
    )
    is_state = any(row[1] or row[2] or row[3] for row in members)
    late = sum(row[0] for row in members if row[4]) > size / 2
    return ArgumentGroup(name, _role(name, is_state, late), size, donated, idle)


def _role(name: str, is_state: bool, late: bool) -> str:
    """By the words of the path; where they say nothing, state that is first read at the end is the optimizer's."""
    for role, words in _ROLES:
        if re.search(words, name, re.IGNORECASE):
            return role
    if not is_state:
        return "batch"
    return "optimizer state" if late else "parameters"


def _first_reads(program: StepProgram) -> np.ndarray:
    """[I] bool: inputs first read in the last half of the program's bytes."""
    made = np.cumsum([sum(map(jaxprs.size_bytes, eqn.outvars)) for eqn in program.jaxpr.eqns] or [0])
    first: dict[Var, int] = {}
    for position, eqn in enumerate(program.jaxpr.eqns):
        for var in jaxprs.vars_of(eqn.invars):
            first.setdefault(var, position)
    middle = int(np.searchsorted(made, made[-1] / 2))
    return np.asarray([first.get(v, 0) > middle for v in program.jaxpr.invars], bool)


def _parts(names: Sequence[str]) -> list[str]:
    """The part that each name belongs to: the argument, and where it has a few named children, the child."""
    children: dict[str, set[str]] = {}
    for name in names:
        first, _, rest = name.partition("/")
        children.setdefault(first, set()).add(rest.split("/")[0])
    return [_part(name, children) for name in names]


def _part(name: str, children: dict[str, set[str]]) -> str:
    first, *rest = itertools.islice(name.split("/"), 2)
    own = children[first]
    named = 1 < len(own) <= _MOST_PARTS and not any(child.isdigit() for child in own)
    return f"{first}/{rest[0]}" if rest and named else first
