"""What a report says in words, for text and HTML alike."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxremat.base.budget import format_bytes
from jaxremat.report.explanation import Explanation, TurningBudget
from jaxremat.report.report import LoopReport, Numbers, Report
from jaxremat.report.rows import Row, Total
from jaxremat.show.units import count_of, format_seconds, format_sum

PAST = {"save": "saved", "recompute": "recomputed", "defer": "made in the backward only"}


@dataclasses.dataclass(frozen=True)
class Fact:
    """One line of the headline: `budget  1.6 GiB  40 % of 4.1 GiB`."""

    label: str
    value: str
    note: str = ""


def facts_of(numbers: Numbers) -> tuple[Fact, ...]:
    """The headline."""
    share = numbers.budget_bytes / max(numbers.baseline_peak_bytes, 1)
    written, compiled = format_bytes(numbers.baseline_peak_bytes), numbers.compiled
    faster = ": faster than as written" if round(numbers.overhead, 3) < 0 else ""
    solved = f"solver {numbers.solver}, {count_of(numbers.compilations, 'compilation')}, {_form(numbers.form)}"
    return (
        Fact("budget", format_bytes(numbers.budget_bytes), f"{share:.0%} of {written} as written"),
        Fact("predicted", format_bytes(numbers.peak_bytes), f"what {numbers.target} is expected to hold at the peak"),
        Fact("compiled", format_bytes(compiled.peak_bytes), f"on {compiled.target}, {_sizes(compiled)}")
        if compiled
        else Fact("compiled", "not yet", 'verify="compile" compiles, reads the bytes and corrects the plan'),
        Fact("extra time", f"{numbers.overhead:.1%}", f"by the cost model of {numbers.target}{faster}"),
        Fact("solved in", f"{numbers.solve_seconds:.1f} s", solved),
    )


def peak_sentence(report: Report) -> str:
    """`at the peak: parameters 12.1 + saved 30.4 + transient 3.3 = 45.8 GiB`."""
    return f"at the peak: {format_sum(report.peak)}"


def loop_sentence(loop: LoopReport) -> str:
    """How the iterations of a loop run."""
    if loop.kind == "shard_map":
        return f"inside {loop.place or 'a shard_map'}: {_again(loop.pieces[0][2], 'its')}"
    if loop.kind == "cond":
        return f"branch {loop.branch} of {loop.place or 'a conditional'}: {_again(loop.pieces[0][2], 'its')}"
    pieces = ", then ".join(_piece(*piece) for piece in loop.pieces)
    return f"loop over {loop.length} iterations ({loop.place or 'a scan'}): {pieces}"


def total_sentence(total: Total) -> str:
    """`saved: 24 values, 389.8 MiB`."""
    return f"{PAST[total.action]}: {count_of(total.count, 'value')}, {format_bytes(total.total_bytes)}"


def rest_sentence(left_out: tuple[int, int]) -> str:
    """What the rows leave out."""
    number, size = left_out
    return f"and {count_of(number, 'smaller value')}, {format_bytes(size)}" if number else ""


def explanation_lines(explanation: Explanation) -> list[str]:
    """A headline, a sentence per row, and what the plan pays elsewhere."""
    table = explanation.table
    totals = "; ".join(
        f"{total.action} {count_of(total.count, 'value')} of {format_bytes(total.total_bytes)}"
        for total in table.totals
    )
    lines = [f"{'all values' if explanation.pattern is None else explanation.pattern}: {totals}"]
    lines += [*map(_row_sentence, table.rows), rest_sentence(table.left_out), _price_sentence(*explanation.prices)]
    return [line for line in lines if line]


def turning_sentence(turning: TurningBudget, peak_bytes: int) -> str:
    """The budget at which a value changes its mind."""
    row = turning.row
    title = _title(row)
    if turning.budget_bytes is None:
        return f"{title}: {row.action} at every budget that can be met"
    other = "recompute" if row.saved else "save"
    return (
        f"{title}: {other} instead from a budget of about {format_bytes(turning.budget_bytes)}"
        f" (this plan is predicted at {format_bytes(peak_bytes)})"
    )


def source_of(row: Row) -> str:
    """The author's line, and how many more there are."""
    more = f" +{len(row.sources) - 1}" if len(row.sources) > 1 else ""
    return f"{row.sources[0]}{more}" if row.sources else ""


def shape_of(row: Row) -> str:
    """The shape of one value, or how many shapes there are."""
    return row.shapes[0] if len(row.shapes) == 1 else f"{len(row.shapes)} shapes"


def _title(row: Row) -> str:
    """Path, name and iterations."""
    iterations = f"(iterations {row.iterations})" if row.iterations else ""
    return "  ".join(part for part in (row.path, row.what, iterations) if part)


def _row_sentence(row: Row) -> str:
    size, where = format_bytes(row.all_bytes), f" at {source_of(row)}" if row.sources else ""
    times = f" × {row.count}" if row.count > 1 else ""
    what = f"{row.action:<9}  {_title(row)} {shape_of(row)}{times}{where}"
    price = f"{format_seconds(row.seconds)} ({row.fraction:.2%}), {format_seconds(row.seconds_per_gib)} per GiB"
    if row.saved:
        return f"{what}: holds {size}; recomputing it instead would cost {price}"
    if row.action == "defer":
        return f"{what}: holds nothing before the backward, which makes it for the first time"
    return f"{what}: saving it would hold {size}; recomputing it costs {price}"


def _price_sentence(paid: float | None, spared: float | None) -> str:
    parts = [f"recomputes what costs up to {format_seconds(paid)} per GiB"] if paid is not None else []
    parts += [f"saves what would cost {format_seconds(spared)} per GiB or more"] if spared is not None else []
    return f"the plan {', and '.join(parts)}" if parts else ""


def _sizes(compiled: Any) -> str:
    sizes = (
        ("arguments", compiled.argument_bytes), ("outputs", compiled.output_bytes), ("temporaries", compiled.temp_bytes)
    )  # fmt: skip
    away = [f"{format_bytes(compiled.host_bytes)} on the host"] if compiled.host_bytes else []
    return ", ".join([*(f"{name} {format_bytes(size)}" for name, size in sizes), *away])


def _form(form: str) -> str:
    untouched = {"plain": "left as written: it fits", "chunks": "nothing runs again but for chunks"}
    return untouched.get(form, f"emitted as {form}")


def _piece(length: int, segments: int, again: int) -> str:
    if segments:
        return f"{length} iterations in {segments} segments, each run again from its carry"
    return f"{length} iterations: {_again(again, 'their')}"


def _again(again: int, whose: str) -> str:
    return f"{again} of {whose} equations run again" if again else f"all that {whose} backward needs is kept"
