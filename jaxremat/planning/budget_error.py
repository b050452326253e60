"""What a refusal says: the floor that was reached, what occupies it, and what would lower it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from jaxremat.base import compat
from jaxremat.base.budget import format_bytes
from jaxremat.base.errors import BudgetError, Occupant
from jaxremat.cost.pricing import resident_bytes
from jaxremat.planner.contract import Outcome
from jaxremat.planning.chunkable import find_regions
from jaxremat.report.origin import Origin, origin_of
from jaxremat.report.rows import common_path, without_numbers

_MOST_VALUES = 6  # lines of a message; the rest is told as one sum
_DOMINATES = 0.1  # of the peak: what could run in chunks, or with a smaller batch, is named from there on
_REST = "smaller values, constants, and what the equation that runs needs inside"


def refusal(
    smallest: Outcome,
    peak_bytes: int,
    budget_bytes: int,
    *,
    schedule_bytes: int | None = None,
    may_chunk: bool = False,
) -> BudgetError:
    """The error for a budget that nothing found keeps to.

    Args:
      smallest: the outcome of the smallest peak.
      peak_bytes: that peak: compiled where plans are, predicted otherwise.
      budget_bytes: the budget.
      schedule_bytes: what a schedule is predicted to need, where another form was asked for.
      may_chunk: whether parts were allowed to run in chunks.
    """
    joint = smallest.problem.joint
    resident = resident_bytes(joint)
    remedies = [*([] if may_chunk else _chunks(smallest, peak_bytes)), *_remedies(resident, peak_bytes, budget_bytes)]
    if schedule_bytes is not None and schedule_bytes < peak_bytes:
        fits = "fits" if schedule_bytes <= budget_bytes else "reaches lower"
        remedies.insert(0, f'emit="schedule": it {fits}, with a predicted peak of {format_bytes(schedule_bytes)}')
    live = occupants(smallest, peak_bytes)
    lines = [
        f"no plan fits in {format_bytes(budget_bytes)}; the minimum peak that was reached is"
        f" {format_bytes(peak_bytes)} ({peak_bytes} bytes).",
        f"There, {_running(smallest)}:",
        *(f"  {format_bytes(occupant.bytes)}  {_told(occupant)}" for occupant in live),
        "What would lower it:",
        *(f"  - {remedy}" for remedy in remedies),
    ]
    return BudgetError("\n".join(lines), min_peak_bytes=peak_bytes, budget_bytes=budget_bytes, occupants=live)


def occupants(outcome: Outcome, peak_bytes: int) -> list[Occupant]:
    """What is live at an outcome's peak: resident bytes, then the largest values, then all the rest as one.

    Args:
      outcome: what was planned; who is live at its peak is predicted.
      peak_bytes: what the records add up to: the peak as compiled, or else as predicted.
    """
    resident = Occupant("arguments, results and gradients", "", "", resident_bytes(outcome.problem.joint))
    listed = [resident, *_values_at_peak(outcome)[:_MOST_VALUES]]
    within = itertools.takewhile(lambda total: total <= peak_bytes, itertools.accumulate(o.bytes for o in listed))
    kept = listed[: len(list(within))]
    rest = peak_bytes - sum(occupant.bytes for occupant in kept)
    return [*kept, Occupant(_REST, "", "", rest)] if rest else kept


def _values_at_peak(outcome: Outcome) -> list[Occupant]:
    """Values that are live at the predicted peak, those of alike places as one, the largest first."""
    joint, graph, timeline = outcome.problem.joint, outcome.problem.graph, outcome.timeline
    value, first, last = timeline.spans.T
    live = np.flatnonzero((first <= timeline.peak_step) & (timeline.peak_step <= last) & (timeline.span_bytes > 0))
    groups: dict[tuple[str, str, str], list[tuple[Origin, int]]] = {}
    for span in live.tolist():
        origin = origin_of(joint.eqns[_behind_names(outcome, graph.producer[value[span]])])
        key = without_numbers(origin.path), origin.operation, origin.source
        groups.setdefault(key, []).append((origin, int(timeline.span_bytes[span])))
    return sorted(map(_occupant, groups.values()), key=lambda occupant: -occupant.bytes)


def _behind_names(outcome: Outcome, node: int) -> int:
    """The node that made what another one names."""
    joint, graph = outcome.problem.joint, outcome.problem.graph
    while compat.name_of(joint.eqns[node]) is not None and graph.values_read[node]:
        node = int(graph.producer[graph.values_read[node][0]])
    return node


def _running(outcome: Outcome) -> str:
    timeline = outcome.timeline
    node = _behind_names(outcome, int(timeline.schedule[timeline.peak_step]))
    part = "backward" if outcome.problem.graph.backward[node] else "forward"
    return f"while the {part} runs {_place(origin_of(outcome.problem.joint.eqns[node]))}, these are live"


def _place(origin: Origin) -> str:
    return "  ".join(part for part in (origin.path, origin.operation, origin.source) if part)


def _told(occupant: Occupant) -> str:
    return "  ".join(part for part in (occupant.path, occupant.name, occupant.source) if part)


def _occupant(group: Sequence[tuple[Origin, int]]) -> Occupant:
    origin = group[0][0]
    count = f" × {len(group)}" if len(group) > 1 else ""
    path = common_path([origin.path for origin, _ in group])
    return Occupant(origin.operation + count, path, origin.source, sum(size_bytes for _, size_bytes in group))


def _chunks(smallest: Outcome, peak_bytes: int) -> list[str]:
    """The parts that dominate the peak and can run in chunks."""
    regions = find_regions(smallest.problem.primal, smallest.problem.device.backend.scores_per_tile)
    return [
        f'plan(..., allow=("chunk",)): the {region.kind} at {region.where} can run in chunks; its'
        f" {list(region.shape)} takes {format_bytes(region.large_bytes)}"
        for region in regions
        if region.large_bytes >= _DOMINATES * peak_bytes
    ]


def _remedies(resident: int, peak_bytes: int, budget_bytes: int) -> list[str]:
    remedies = []
    if resident > budget_bytes:
        remedies.append(
            f"sharding the parameters, or a narrower dtype: arguments, results and gradients alone take"
            f" {format_bytes(resident)}, and no plan can go below them"
        )
    elif 2 * resident > peak_bytes:
        remedies.append(f"sharding the parameters: with results and gradients, {format_bytes(resident)}")
    if peak_bytes - resident > _DOMINATES * peak_bytes:
        remedies.append(
            f"a smaller batch, or sharding it: {format_bytes(peak_bytes - resident)} are intermediate values"
        )
    enough = f"a budget of at least {peak_bytes} bytes"
    return [*remedies, enough if resident <= budget_bytes else f'{enough}; budget="least" finds the smallest']
