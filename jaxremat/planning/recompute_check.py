"""Did the plan take effect? What it recomputes, looked up in the program after all the compiler's passes.

A compiler that finds the recomputation equal to the first computation keeps only one of the two, and with it the bytes
that the plan meant to free. Each instruction of a compiled program carries the name stack of what it stems from; what
the backward runs has one of its own. Where none of a planned recomputation's names is left, it did not happen.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Iterator, Sequence

import numpy as np

from jaxremat.base import compat
from jaxremat.base.budget import format_bytes
from jaxremat.base.compat import Eqn
from jaxremat.compiled.compile import MemoryReport
from jaxremat.emit.script import Script
from jaxremat.graph.graph import Graph
from jaxremat.graph.scheduled import ScheduledProgram
from jaxremat.planner.transfers import bytes_on_host
from jaxremat.report.origin import Origin, origin_of
from jaxremat.report.rows import common_path, without_numbers
from jaxremat.trace.joint import Joint

_OP_NAME = re.compile(r'op_name="([^"]*)"')
_RECOGNISABLE = frozenset(
    (
        *("dot_general", "ragged_dot_general", "conv_general_dilated", "tanh", "exp", "log", "erf"),
        *("sin", "cos", "sort", "fft"),
    )
)
"""Primitives whose instruction keeps its name; others may be simplified away, or go by a neighbour's name."""
_FREE = frozenset(("broadcast_in_dim", "reshape", "transpose", "squeeze", "iota", "convert_element_type", "copy"))
_ENOUGH = 0.5  # compilers merge neighbouring contractions, two into one
_MOST_WARNINGS = 8  # lines of a message


@dataclasses.dataclass(frozen=True)
class RecomputeCheck:
    """What became of the recomputations of one place in the program.

    Attributes:
      origin: where the values come from.
      planned: how many of its recomputations the schedule holds.
      emitted: how many the emitted program holds.
      compiled: how many instructions of the compiled program bear their name; fused and folded ones count once.
      size_bytes: of the values that are recomputed.
      certain: whether an instruction that is not found is certainly not there.
    """

    origin: Origin
    planned: int
    emitted: int
    compiled: int
    size_bytes: int
    certain: bool

    @property
    def took_place(self) -> bool:
        return self.emitted >= self.planned and self.compiled >= _ENOUGH * self.planned


def recompute_checks(
    joint: Joint, graph: Graph, schedule: Sequence[int] | np.ndarray, script: Script, compiled_text: str
) -> list[RecomputeCheck]:
    """What became of each recomputation, by the names in a compiled program.

    Args:
      joint, graph: the program.
      schedule: [T] node ids.
      script: what was emitted for the schedule.
      compiled_text: the program after the compiler's passes, with the name stacks of its instructions.

    Returns:
      One record per name stack, in program order. Recomputation inside loop bodies is not among them.
    """
    repeats = np.bincount(np.asarray(schedule, np.int64), minlength=graph.num_nodes) - 1
    repeats[joint.backward] = 0
    emitted = collections.Counter(id(eqn) for segment in script.backward for eqn in segment.eqns)
    instructions = _backward_names(compiled_text)
    groups: dict[str, list[int]] = {}
    for node in np.flatnonzero(repeats > 0).tolist():
        if joint.eqns[node].primitive.name not in _FREE:
            groups.setdefault(_name_in_backward(joint.eqns[node]), []).append(node)
    return [
        RecomputeCheck(
            origin=origin_of(joint.eqns[nodes[0]]),
            planned=int(repeats[nodes].sum()),
            emitted=sum(emitted[id(joint.eqns[node])] for node in nodes),
            compiled=instructions[name],
            size_bytes=int(graph.node_bytes[nodes].sum()),
            certain=joint.eqns[nodes[0]].primitive.name in _RECOGNISABLE,
        )
        for name, nodes in groups.items()
    ]


def eliminated(found: Sequence[RecomputeCheck], suspicious: bool = False) -> tuple[str, ...]:
    """One warning per recomputation that did not take place, alike ones as one, the largest first; the rest counted.

    Args:
      found: what became of each recomputation.
      suspicious: whether the program takes more memory than it should, so that what is not found likely is not there.
    """
    alike: dict[tuple[str, str, str], list[RecomputeCheck]] = {}
    for check in found:
        if not check.took_place and (suspicious or check.certain):
            key = without_numbers(check.origin.path), check.origin.operation, check.origin.source
            alike.setdefault(key, []).append(check)
    groups = sorted(alike.values(), key=lambda group: -_total_bytes(group))
    warnings = tuple(map(_warning, groups[:_MOST_WARNINGS]))
    if len(groups) > _MOST_WARNINGS:
        rest = sum(map(_total_bytes, groups[_MOST_WARNINGS:]))
        warnings += (f"and {len(groups) - _MOST_WARNINGS} smaller recomputations ({format_bytes(rest)}) likewise",)
    return warnings


def copies_undone(joint: Joint, program: ScheduledProgram, report: MemoryReport) -> tuple[str, ...]:
    """A warning where less waits on the host than was planned: compilers cancel copies there and back in silence."""
    planned = bytes_on_host(joint, program)
    if report.host_bytes >= planned:
        return ()
    return (
        f"{format_bytes(planned)} were to wait in the host's memory, and {format_bytes(report.host_bytes)} do in the"
        f" program as compiled for {report.target}: the compiler undid the other copies, and their values stay on the"
        " device",
    )


def _warning(group: Sequence[RecomputeCheck]) -> str:
    origin = group[0].origin
    place = "  ".join(
        part for part in (common_path([e.origin.path for e in group]), origin.operation, origin.source) if part
    )
    planned, emitted, compiled = (sum(getattr(e, stage) for e in group) for stage in ("planned", "emitted", "compiled"))
    return (
        f"recomputing {place} ({format_bytes(_total_bytes(group))}) was planned {planned} times, emitted {emitted}"
        f" times, and is found {compiled} times in the compiled program: the compiler kept the first result instead,"
        " and its bytes"
    )


def _total_bytes(group: Sequence[RecomputeCheck]) -> int:
    return sum(check.size_bytes for check in group)


def _name_in_backward(eqn: Eqn) -> str:
    """The end of the name stack that an equation has when a transposed program runs it again."""
    head, *rest = compat.name_stack(eqn).split("/")
    return "/".join([f"transpose(jvp({head}))", *rest, eqn.primitive.name])


def _backward_names(text: str) -> collections.Counter[str]:
    return collections.Counter(_scopes(text))


def _scopes(text: str) -> Iterator[str]:
    """The name stack of each instruction, from the transposed scope on."""
    for name in _OP_NAME.findall(text):
        start = name.find("transpose(jvp(")
        if start >= 0:
            yield name[start:]
