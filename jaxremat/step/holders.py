"""Who holds what while a step is at its peak: its arguments by path, and what it computes by kind."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Sequence
from typing import Any

from jaxremat.base.budget import format_bytes
from jaxremat.step.program import StepProgram
from jaxremat.step.renewal import read_late

_KEY = ("random key", r"rng|key|dropout")
_PARAMETERS = ("parameters", r"param|weight|model|module|adapter|lora")
_RENEWED = (
    ("counter", r"(step|count|iteration)$"),
    ("metrics", r"metric"),
    ("averages", r"ema|averag|avg|teacher|shadow|polyak|target"),
    ("optimizer state", r"opt|adam|moment|(mu|nu)\b|trace|accum"),
    ("statistics", r"(batch_)?stats|statistic|running"),
    _KEY,
    _PARAMETERS,
)
_ONLY_READ = (
    ("batch", r"[xy]s?\b|batch|data|sample|example|input|target|label|image|token|text|obs|real|noise|micro"),
    _KEY,
    _PARAMETERS,
)
"""What people call the parts of a state that a step renews, and what it only reads; only words of the report hang on
it."""
_NEUTRAL = "input"
_MOST_PARTS = 8  # lines of a display
_TOLD = 0.001  # of the arguments: less shows as 0.0 %, and is a count, a key or a sum of metrics


@dataclasses.dataclass(frozen=True)
class ArgumentGroup:
    """Leaves of one part of one argument.

    Attributes:
      name: its path, such as `state/opt`.
      role: what it is, as people say: parameters, optimizer state, averages, batch ...
      size_bytes: on one device.
      donated_bytes: of leaves whose buffers results take over.
      idle_bytes: of leaves that a result could take over, if they were donated.
      host_bytes: of leaves that lie in the host's memory.
    """

    name: str
    role: str
    size_bytes: int
    donated_bytes: int
    idle_bytes: int
    host_bytes: int = 0

    @property
    def sentence(self) -> str:
        """`optimizer state (state/opt), donated`."""
        named = f"{self.role} ({self.name})" if self.role != self.name else self.name
        elsewhere = f", {format_bytes(self.host_bytes)} on the host" if self.host_bytes else ""
        return named + (", donated" if self.donated_bytes > self.size_bytes / 2 else "") + elsewhere


def argument_groups(program: StepProgram) -> tuple[ArgumentGroup, ...]:
    """The arguments of a step by part, the largest first."""
    late = read_late(program.jaxpr)
    parts = _parts(program.names)
    held = program.input_bytes, program.host_input_bytes
    rows = zip(parts, *held, program.reused, program.reusable, program.renewed, late, strict=True)
    groups: dict[str, list[tuple[Any, ...]]] = {}
    for part, *row in rows:
        groups.setdefault(part, []).append(tuple(row))
    made = [_group(name, members) for name, members in groups.items()]
    return tuple(sorted(made, key=lambda group: -group.size_bytes))


def donation_warnings(groups: Sequence[ArgumentGroup]) -> tuple[str, ...]:
    """One warning per part of a state, worth the words, that the step returns anew without giving its buffers up."""
    argument_bytes = sum(group.size_bytes for group in groups)
    return tuple(
        f"{group.name} is not donated, though results of the same shapes could take its place:"
        f" {format_bytes(group.idle_bytes)} more than needed; donate it with donate_argnums or donate_argnames"
        for group in groups
        if group.idle_bytes > _TOLD * argument_bytes
    )


def _group(name: str, members: Sequence[tuple[Any, ...]]) -> ArgumentGroup:
    here, there, *flags = zip(*members)
    size, host = sum(here), sum(there)
    donated, idle = (sum(itertools.compress(here, flag)) for flag in flags[:2])
    sizes = [a + b for a, b in zip(here, there)]
    renewed, late = (2 * sum(itertools.compress(sizes, flag)) > size + host for flag in flags[2:])
    return ArgumentGroup(name, _role(name, is_renewed=renewed, is_late=late), size, donated, idle, host)


def _role(name: str, *, is_renewed: bool, is_late: bool) -> str:
    """By the words of the path, among what it can be. Where they say nothing, state that is first read at the end is
    the optimizer's, other state is parameters, and the rest is no more than an input."""
    for role, words in _RENEWED if is_renewed else _ONLY_READ:
        if re.search(rf"(?<![a-z])({words})", name, re.IGNORECASE):
            return role
    if not is_renewed:
        return _NEUTRAL
    return "optimizer state" if is_late else "parameters"


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
