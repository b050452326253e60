"""What a refusal says: the floor that was reached, who holds it, and what would lower it, the surest remedy first."""

from __future__ import annotations

from collections.abc import Sequence

from jaxremat.base.budget import format_bytes
from jaxremat.base.errors import BudgetError, Occupant
from jaxremat.step.holders import ArgumentGroup, argument_groups, donation_warnings
from jaxremat.step.outcome import Posed, StepOutcome
from jaxremat.step.program import StepProgram

_MOST_GROUPS = 6  # lines of a message
_TELLING = 0.1  # of the budget


def refusal(program: StepProgram, smallest: StepOutcome, peak_bytes: int, budget_bytes: int) -> BudgetError:
    """The error for a budget that nothing found keeps to.

    Args:
      program: the step.
      smallest: the outcome of the smallest peak.
      peak_bytes: that peak: compiled where plans are, predicted otherwise.
      budget_bytes: the budget.
    """
    reached = (
        f"no plan of this step fits in {format_bytes(budget_bytes)}; the minimum peak that was reached is"
        f" {format_bytes(peak_bytes)} ({peak_bytes} bytes)."
    )
    enough = f"a budget of at least {peak_bytes} bytes"
    return _error(program, smallest.posed, peak_bytes, budget_bytes, reached, enough)


def below_held(
    program: StepProgram, smallest: StepOutcome, peak_bytes: int, budget_bytes: int, held_bytes: int
) -> BudgetError:
    """The error for a budget below what arguments and results take, as compiled: no plan can keep to it.

    Args:
      program, smallest, peak_bytes, budget_bytes: as of `refusal`; the least was not sought.
      held_bytes: what arguments and results take.
    """
    alone = (
        f"no plan of this step can fit in {format_bytes(budget_bytes)}: its arguments and results alone take"
        f" {format_bytes(held_bytes)} ({held_bytes} bytes), before anything is computed."
    )
    enough = f'a budget of at least {peak_bytes} bytes, which is reached; budget="least" finds the smallest'
    return _error(program, smallest.posed, peak_bytes, budget_bytes, alone, enough)


def _error(
    program: StepProgram, posed: Posed, peak_bytes: int, budget_bytes: int, headline: str, enough: str
) -> BudgetError:
    groups, resident_bytes = argument_groups(program), posed.graph.resident_bytes
    occupants = _occupants(groups, resident_bytes, peak_bytes)
    lines = [
        headline,
        "There, these are live:",
        *(f"  {format_bytes(occupant.bytes)}  {occupant.name}" for occupant in occupants),
        "What would lower it:",
        *(f"  - {remedy}" for remedy in _remedies(program, groups, posed, peak_bytes, budget_bytes)),
        f"  - {enough}",
    ]
    return BudgetError("\n".join(lines), min_peak_bytes=peak_bytes, budget_bytes=budget_bytes, occupants=occupants)


def _occupants(groups: Sequence[ArgumentGroup], resident_bytes: int, peak_bytes: int) -> list[Occupant]:
    shown, rest = groups[:_MOST_GROUPS], groups[_MOST_GROUPS:]
    arguments = sum(group.size_bytes for group in groups)
    rows = [(group.sentence, group.size_bytes) for group in shown]
    rows.append(("other arguments", sum(group.size_bytes for group in rest)))
    rows.append(("results that take over no argument's buffer", resident_bytes - arguments))
    rows.append(("intermediate values", peak_bytes - max(resident_bytes, arguments)))
    return [Occupant(name, "", "", size) for name, size in rows if size > 0]


def _remedies(
    program: StepProgram, groups: Sequence[ArgumentGroup], posed: Posed, peak_bytes: int, budget_bytes: int
) -> list[str]:
    remedies = [*donation_warnings(groups)]
    for group in groups:
        if group.role != "batch" and group.size_bytes >= _TELLING * budget_bytes:
            remedies.append(
                f"{group.name}: {group.role} {format_bytes(group.size_bytes)} of {format_bytes(budget_bytes)}:"
                f" {_advice(group.role, has_link=posed.device.host_bytes_per_second is not None)}"
            )
    computed = peak_bytes - posed.graph.resident_bytes
    if computed >= _TELLING * budget_bytes:
        if not any(program.shardings):
            remedies.append("allow=('chunk',), unless it is given: large values, or all of a batch, slice by slice")
        remedies.append(f"a smaller batch, or sharding it: {format_bytes(computed)} are intermediate values")
    return remedies


def _advice(role: str, *, has_link: bool) -> str:
    if role not in ("optimizer state", "averages"):
        return "shard it, or keep it in a narrower dtype"
    if has_link:
        return (
            "place it on the host, jax.device_put(leaf, leaf.sharding.with_memory_kind('pinned_host')), and"
            " allow=('offload',) brings each leaf to the device for its update; or shard it"
        )
    return "shard it, or take an optimizer that keeps less"
