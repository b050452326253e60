"""Who is live at a moment of a program, by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxremat.graph.replay import Timeline
from jaxremat.report.live import KINDS, LiveBytes
from jaxremat.report.names import Names
from jaxremat.report.origin import is_transposed
from jaxremat.report.parts import Version
from jaxremat.report.rows import common_path, without_numbers

_MOST_HOLDERS = 5  # lines beside a moment


@dataclasses.dataclass(frozen=True)
class Holder:
    """Buffers that are alike and live at one moment.

    Attributes:
      what: path and name, such as `GPT/block_0…11  gelu`.
      kind: one of `jaxremat.report.live.KINDS`.
      size_bytes: bytes of all of them.
    """

    what: str
    kind: str
    size_bytes: int


@dataclasses.dataclass(frozen=True)
class Moment:
    """What is live while one step runs.

    Attributes:
      step: the step of the timeline.
      begin_seconds, end_seconds: when it runs.
      running: the path and name of what runs.
      total_bytes: all that is live.
      holders: the largest, by falling bytes.
      rest_bytes: what the holders leave out.
    """

    step: int
    begin_seconds: float
    end_seconds: float
    running: str
    total_bytes: int
    holders: tuple[Holder, ...]
    rest_bytes: int


class Moments:
    """The moments of a program.

    Args:
      version: the program.
      live: its live bytes.
      names: what is known by name in it.
    """

    def __init__(self, version: Version, live: LiveBytes, names: Names) -> None:
        self._timeline: Timeline = version.timeline
        self._live = live
        self._resident_bytes = version.problem.graph.resident_bytes
        graph = version.problem.graph
        self._paths = [origin.path for origin in names.origins]
        self._labels = [
            f"{origin.label} (gradient)" if is_transposed(eqn) else origin.label
            for origin, eqn in zip(names.origins, version.problem.joint.eqns)
        ]
        self._node = graph.producer[version.timeline.spans[:, 0]]
        keys = [
            (without_numbers(self._paths[node]), self._labels[node], KINDS[kind])
            for node, kind in zip(self._node.tolist(), live.span_kind.tolist())
        ]
        number = {key: i for i, key in enumerate(dict.fromkeys(keys))}
        self._keys = list(number)
        self._group = np.asarray([number[key] for key in keys], np.int64)

    def at(self, step: int) -> Moment:
        """What is live at a step."""
        _, first, last = self._timeline.spans.T
        spans = np.flatnonzero((first <= step) & (step <= last))
        held = np.bincount(self._group[spans], self._timeline.span_bytes[spans], len(self._keys)).astype(np.int64)
        largest = [group for group in np.argsort(-held)[:_MOST_HOLDERS].tolist() if held[group]]
        holders = [Holder("arguments and results", "resident", self._resident_bytes)] if self._resident_bytes else []
        holders += [self._holder(group, spans, int(held[group])) for group in largest]
        total = int(self._timeline.live_bytes[step])
        node = int(self._timeline.schedule[step])
        return Moment(
            step=step,
            begin_seconds=float(self._live.begin_seconds[step]),
            end_seconds=float(self._live.end_seconds[step]),
            running=_title(self._paths[node], self._labels[node]),
            total_bytes=total,
            holders=tuple(sorted(holders, key=lambda holder: -holder.size_bytes)),
            rest_bytes=total - sum(holder.size_bytes for holder in holders),
        )

    def _holder(self, group: int, spans: Sequence[int] | np.ndarray, size_bytes: int) -> Holder:
        _, label, kind = self._keys[group]
        paths = [self._paths[self._node[span]] for span in spans if self._group[span] == group]
        return Holder(_title(common_path(paths), label), kind, size_bytes)


def _title(path: str, label: str) -> str:
    return f"{path}  {label}" if path else label
