"""What there is to say about a plan; `show` only writes it down."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxremat.base.budget import format_bytes
from jaxremat.compiled.compile import MemoryReport
from jaxremat.cost.pricing import resident_parts
from jaxremat.loops.body import Loop
from jaxremat.loops.decision import LoopDecision, Piece
from jaxremat.loops.find import find
from jaxremat.planner.problem import Problem
from jaxremat.report.live import KINDS, LiveBytes, live_bytes_of
from jaxremat.report.moments import Moment, Moments
from jaxremat.report.names import Names
from jaxremat.report.origin import origin_of
from jaxremat.report.parts import Part, Version, parts_of
from jaxremat.report.rows import Table, table_of
from jaxremat.report.values import Value, values_of

MOST_ROWS = 40  # of a table; the rest is one row
COLUMNS = 100
"""In how many parts of equal time the timeline is drawn; each one shows its fullest moment."""
_FAR_OFF = 0.2  # twice what predictions are off by at worst: prediction.md


@dataclasses.dataclass(frozen=True)
class Numbers:
    """The numbers of a plan, as a plan file holds them too.

    Attributes: as of `jaxremat.Plan`; `form` is how it is emitted.
    """

    budget_bytes: int
    peak_bytes: int
    baseline_peak_bytes: int
    overhead: float
    compiled: MemoryReport | None
    compilations: int
    solve_seconds: float
    solver: str
    target: str
    form: str
    warnings: tuple[str, ...] = ()

    @staticmethod
    def of(plan: Any, form: str) -> Numbers:
        """Those of anything that has them as attributes."""
        names = (field.name for field in dataclasses.fields(Numbers) if field.name != "form")
        return Numbers(form=form, **{name: getattr(plan, name) for name in names})

    def summary(self) -> dict[str, Any]:
        """Plain values, for experiment trackers and JSON."""
        compiled = {} if self.compiled is None else {"compiled_" + k: v for k, v in _sizes(self.compiled).items()}
        plain = {name: value for name, value in dataclasses.asdict(self).items() if name != "compiled"}
        return {**plain, "solver": str(self.solver), "warnings": list(self.warnings), **compiled}


@dataclasses.dataclass(frozen=True)
class LoopReport:
    """How the iterations of one loop run.

    Attributes:
      place: module path or source line of the loop.
      length: iterations.
      kind: "scan", "cond" or "shard_map".
      branch: which branch of a conditional it is.
      pieces: (iterations, segments, equations that run again) of each piece; 0 segments where iterations run one by
        one.
    """

    place: str
    length: int
    kind: str
    branch: int
    pieces: tuple[tuple[int, int, int], ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Course:
    """What a program holds over time.

    Attributes:
      live: live bytes by kind.
      moments: the fullest moment of each of `COLUMNS` parts of the longer program's time; None past the end.
      peak: what is live at the peak.
    """

    live: LiveBytes
    moments: tuple[Moment | None, ...]
    peak: Moment


@dataclasses.dataclass(frozen=True, eq=False)
class Report:
    """A plan, ready to be written down.

    Attributes:
      numbers: the headline.
      peak: (what, bytes) of the predicted peak; they add up to it.
      written, planned: the program before and after.
      seconds: the time of the longer one.
      table: what becomes of every value.
      loops: one record per loop of the program that was decided.
      warnings: what the reader should know.
    """

    numbers: Numbers
    peak: tuple[tuple[str, int], ...]
    written: Course
    planned: Course
    seconds: float
    table: Table
    loops: tuple[LoopReport, ...]
    warnings: tuple[str, ...]


def report_of(
    numbers: Numbers,
    written: Version,
    planned: Version,
    resident: Mapping[str, int] | None = None,
    most_rows: int = MOST_ROWS,
) -> Report:
    """Everything that the display says about a plan.

    Args:
      numbers: of the plan.
      written, planned: the program before and after.
      resident: names and bytes of what is live throughout; arguments, results and gradients by default.
      most_rows: how many rows there may be.
    """
    parts = decided(planned)
    live = [_live(version) for version in (written, planned)]
    seconds = max(each.seconds for each in live)
    names = planned.names if written.problem is planned.problem else written.names
    before, after = _course(written, live[0], names, seconds), _course(planned, live[1], planned.names, seconds)
    return Report(
        numbers=numbers,
        peak=_peak(after.live, resident or resident_parts(planned.problem.joint)),
        written=before,
        planned=after,
        seconds=seconds,
        table=table_of(parts, written.timeline.cost, most_rows),
        loops=tuple(_loops(planned.problem)),
        warnings=(*numbers.warnings, *_warnings(numbers, written.timeline.peak_bytes)),
    )


def decided(version: Version) -> dict[Part, dict[int, Value]]:
    """The values that a plan decides about, by id, for each part of it."""
    return {part: values_of(part) for part in parts_of(version)}


def _live(version: Version) -> LiveBytes:
    return live_bytes_of(version.problem.graph, version.scheduled, version.timeline)


def _course(version: Version, live: LiveBytes, names: Names, seconds: float) -> Course:
    moments = Moments(version, live, names)
    steps = live.sampled_steps(COLUMNS, seconds).tolist()
    at = {step: moments.at(step) for step in {*steps, live.peak_step} if step >= 0}
    return Course(live, tuple(at.get(step) for step in steps), at[live.peak_step])


def _peak(live: LiveBytes, resident: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
    """What is live throughout, then the other kinds at the peak."""
    at_peak = live.by_kind[:, live.peak_step]
    passing = [(kind, int(size)) for kind, size in zip(KINDS, at_peak) if kind != "resident"]
    return tuple((what, size) for what, size in (*resident.items(), *passing) if size)


def _loops(problem: Problem) -> Iterator[LoopReport]:
    for loop, decision in zip(find(problem.primal), problem.loops):
        yield _loop(problem.primal.jaxpr.eqns[loop.position], loop, decision)


def _loop(eqn: Any, loop: Loop, decision: LoopDecision) -> LoopReport:
    origin = origin_of(eqn)
    place = origin.path or origin.source
    return LoopReport(place, loop.length, loop.kind, loop.branch, tuple(map(_piece, decision.pieces)))


def _piece(piece: Piece) -> tuple[int, int, int]:
    again = len(piece.forward) + len(piece.backward) - len({*piece.forward, *piece.backward})
    return piece.length, piece.count if piece.inside else 0, again


def _sizes(compiled: MemoryReport) -> dict[str, int]:
    names = ("peak_bytes", "argument_bytes", "output_bytes", "temp_bytes")
    return {name: getattr(compiled, name) for name in names}


def _warnings(numbers: Numbers, written_bytes: int) -> Sequence[str]:
    compiled = numbers.compiled
    if compiled is None:
        return ["nothing was compiled: the executable may take more or less than predicted"]
    found = []
    if compiled.peak_bytes > numbers.budget_bytes:
        over = format_bytes(compiled.peak_bytes - numbers.budget_bytes)
        found.append(f"the compiled program takes {over} more than the budget")
    off = numbers.peak_bytes / compiled.peak_bytes - 1 if numbers.form != "plain" else 0.0
    if abs(off) > _FAR_OFF:
        found.append(f"the prediction is off by {off:+.0%}: the rows and curves follow the prediction")
    if abs(written_bytes / numbers.baseline_peak_bytes - 1) > _FAR_OFF:
        found.append(
            f"as written, the program takes {format_bytes(numbers.baseline_peak_bytes)} when compiled; the curve shows"
            f" the predicted {format_bytes(written_bytes)}"
        )
    return found
