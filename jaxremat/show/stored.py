"""A plan file without its function: the headline and what becomes of each value."""

from __future__ import annotations

import collections
import re
from collections.abc import Sequence
from typing import Any

from jaxremat.base.budget import format_bytes
from jaxremat.report.report import Numbers
from jaxremat.show.sentences import facts_of
from jaxremat.show.text import headline, terminal_width


def stored_to_text(numbers: Numbers, actions: Sequence[dict[str, Any]]) -> str:
    """Headline and actions, identical layers folded.

    Args:
      numbers: of the plan.
      actions: dicts of action, value, shape, bytes and source, as a plan file holds them.
    """
    width = terminal_width()
    folded: dict[tuple[str, ...], list[int]] = collections.defaultdict(list)
    for action in actions:
        folded[action["action"], _starred(action["value"]), action["shape"], action["source"]].append(action["bytes"])
    rows = sorted(folded.items(), key=lambda item: (item[0][0] != "save", -sum(item[1])))
    lines = [
        f"{kind:<9}  {format_bytes(sum(sizes)):>10}  × {len(sizes):<4} {value}  {shape}  {source}".rstrip()[:width]
        for (kind, value, shape, source), sizes in rows
    ]
    return "\n".join([*headline(facts_of(numbers), width), "", *lines])


def _starred(value: str) -> str:
    """A value's title with the numbers of its modules left open."""
    path, gap, rest = value.partition("  ")
    return re.sub(r"(?<=_)\d+", "*", path) + gap + rest
