"""What there is to say about a plan, as data; `text` and `html` only write it down."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from jaxremat.backends.devices import Device, resolve_target
from jaxremat.base.budget import format_bytes
from jaxremat.cost.pricing import price
from jaxremat.graph.replay import Timeline
from jaxremat.loops.body import Body, Loop
from jaxremat.loops.decision import LoopDecision, Piece
from jaxremat.loops.emit import Emitter
from jaxremat.loops.find import find
from jaxremat.planner.problem import Problem
from jaxremat.show.bands import Bands, bands_of
from jaxremat.show.folding import Row, fold
from jaxremat.show.paths import origin_of
from jaxremat.show.stretch import Stretch

MOST_ROWS = 40
_STACKS = ("scan",)  # what loops stack is told by their iterations


class Planned(Protocol):
    """What is read of a plan."""

    @property
    def decision(self) -> Any: ...
    @property
    def problem(self) -> Problem: ...
    @property
    def schedule(self) -> np.ndarray: ...
    @property
    def timeline(self) -> Timeline: ...
    @property
    def baseline_problem(self) -> Problem: ...
    @property
    def baseline_timeline(self) -> Timeline: ...
    @property
    def budget_bytes(self) -> int: ...
    @property
    def peak_bytes(self) -> int: ...
    @property
    def baseline_peak_bytes(self) -> int: ...
    @property
    def overhead(self) -> float: ...
    @property
    def compiled(self) -> Any: ...
    @property
    def compilations(self) -> int: ...
    @property
    def solve_seconds(self) -> float: ...
    @property
    def solver(self) -> str: ...
    @property
    def target(self) -> str: ...
    @property
    def warnings(self) -> tuple[str, ...]: ...


@dataclasses.dataclass(frozen=True)
class Fact:
    """One line of the headline: `budget  1.6 GiB  40 % of 4.1 GiB`."""

    label: str
    value: str
    note: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class Report:
    """A plan, ready to be written down.

    Attributes:
      facts: the headline.
      baseline, planned: live bytes before and after.
      budget_bytes: the line that the second stays under.
      rows: decisions, identical layers folded.
      left_out: how many values the rows leave out, and their bytes.
      loops: one sentence per loop of the program.
      warnings: what the reader should know.
    """

    facts: tuple[Fact, ...]
    baseline: Bands
    planned: Bands
    budget_bytes: int
    rows: tuple[Row, ...]
    left_out: tuple[int, int]
    loops: tuple[str, ...]
    warnings: tuple[str, ...]


def report_of(plan: Planned, most_rows: int = MOST_ROWS) -> Report:
    """Everything that the display says about a plan."""
    rows, values, left_out_bytes = fold(stretches_of(plan), plan.baseline_timeline.cost, most_rows)
    return Report(
        facts=facts_of(plan),
        baseline=bands_of(plan.baseline_problem.graph, plan.baseline_timeline),
        planned=bands_of(plan.problem.graph, plan.timeline),
        budget_bytes=plan.budget_bytes,
        rows=rows,
        left_out=(values, left_out_bytes),
        loops=tuple(_sentences(plan)),
        warnings=(*plan.warnings, *_warnings(plan)),
    )


def main_stretch(plan: Planned) -> Stretch:
    """The whole program as planned."""
    return Stretch(plan.problem.joint, plan.problem.graph, plan.schedule, hidden=_STACKS if plan.problem.loops else ())


def stretches_of(plan: Planned) -> tuple[Stretch, ...]:
    """The whole program, then one stretch per way in which an iteration of a loop runs."""
    inside: list[Stretch] = []
    device, emitter = resolve_target(plan.target), Emitter()
    for loop, decision in zip(find(plan.problem.primal), plan.problem.loops):
        prefix = origin_of(plan.problem.primal.jaxpr.eqns[loop.position]).path
        inside.extend(_iterations(emitter, loop.body, decision, 1, prefix, device))
    return (main_stretch(plan), *inside)


def _iterations(
    emitter: Emitter, body: Body, decision: LoopDecision, times: int, prefix: str, device: Device
) -> Iterator[Stretch]:
    joint = emitter.joint(body, decision.inner)
    graph = price(joint, device)
    for piece, repeats in _leaves(decision.pieces, times):
        yield Stretch(joint, graph, np.asarray((*piece.forward, *piece.backward), np.int32), repeats, prefix)
    for loop, inner in zip(body.loops, decision.inner):
        within = origin_of(body.primal.jaxpr.eqns[loop.position]).path
        path = f"{prefix}/{within}".strip("/")
        yield from _iterations(emitter, loop.body, inner, times * decision.length, path, device)


def _leaves(pieces: Sequence[Piece], times: int) -> Iterator[tuple[Piece, int]]:
    for piece in pieces:
        if piece.inside:
            yield from _leaves(piece.inside, times * piece.count)
        else:
            yield piece, times * piece.count


def facts_of(plan: Any) -> tuple[Fact, ...]:
    """The headline of a plan, or of anything else with its numbers."""
    share = plan.budget_bytes / max(plan.baseline_peak_bytes, 1)
    compiled = plan.compiled
    return (
        Fact(
            "budget",
            format_bytes(plan.budget_bytes),
            f"{share:.0%} of {format_bytes(plan.baseline_peak_bytes)} as written",
        ),
        Fact("predicted", format_bytes(plan.peak_bytes), f"what {plan.target} is expected to hold at the peak"),
        Fact("compiled", format_bytes(compiled.peak_bytes), f"on {compiled.target}, {_parts(compiled)}")
        if compiled
        else Fact("compiled", "not yet", 'verify="compile" compiles, reads the bytes and corrects the plan'),
        Fact("extra time", f"{plan.overhead:.1%}", f"by the cost model of {plan.target}"),
        Fact(
            "solved in",
            f"{plan.solve_seconds:.1f} s",
            f"solver {plan.solver}, {_compilations(plan.compilations)}, {_form(plan)}",
        ),
    )


def _parts(compiled) -> str:
    sizes = (
        ("arguments", compiled.argument_bytes), ("outputs", compiled.output_bytes), ("temporaries", compiled.temp_bytes)
    )  # fmt: skip
    return ", ".join(f"{name} {format_bytes(size)}" for name, size in sizes)


def _compilations(number: int) -> str:
    return "1 compilation" if number == 1 else f"{number} compilations"


def _form(plan: Any) -> str:
    form = plan.decision.emit
    return "left as written: it fits" if form == "plain" else f"emitted as {form}"


def _sentences(plan: Planned) -> Iterator[str]:
    for loop, decision in zip(find(plan.problem.primal), plan.problem.loops):
        yield _sentence(plan.problem.primal.jaxpr.eqns[loop.position], loop, decision)


def _sentence(eqn, loop: Loop, decision: LoopDecision) -> str:
    origin = origin_of(eqn)
    if loop.branch is not None:
        where = origin.path or origin.source or "a conditional"
        return f"branch {loop.branch} of {where}: {_again(decision.pieces[0], 'its')}"
    where = origin.path or origin.source or "a scan"
    return f"loop over {loop.length} iterations ({where}): " + ", then ".join(map(_piece, decision.pieces))


def _piece(piece: Piece) -> str:
    if not piece.inside:
        return f"{piece.length} iterations: {_again(piece, 'their')}"
    return f"{piece.length} iterations in {piece.count} segments, each run again from its carry"


def _again(piece: Piece, whose: str) -> str:
    again = len(piece.forward) + len(piece.backward) - len({*piece.forward, *piece.backward})
    return f"{again} of {whose} equations run again" if again else f"all that {whose} backward needs is kept"


def _warnings(plan: Planned) -> Iterator[str]:
    compiled = plan.compiled
    if compiled is None:
        yield "nothing was compiled: the executable may take more or less than predicted"
        return
    if compiled.peak_bytes > plan.budget_bytes:
        over = format_bytes(compiled.peak_bytes - plan.budget_bytes)
        yield f"the compiled program takes {over} more than the budget"
    off = plan.peak_bytes / compiled.peak_bytes - 1 if plan.decision.emit != "plain" else 0.0
    if abs(off) > 0.2:
        yield f"the prediction is off by {off:+.0%}: the rows and curves follow the prediction"
    predicted = plan.baseline_timeline.peak_bytes
    if abs(predicted / plan.baseline_peak_bytes - 1) > 0.2:
        yield (
            f"as written, the program takes {format_bytes(plan.baseline_peak_bytes)} when compiled; the curve shows the"
            f" predicted {format_bytes(predicted)}"
        )
