"""What a refusal says: the floor that was reached, who holds it, and what would lower it, the surest remedy first."""

from __future__ import annotations

from jaxremat.base.budget import format_bytes
from jaxremat.base.errors import BudgetError
from jaxremat.step.holders import ArgumentGroup, argument_groups, donation_warnings
from jaxremat.step.outcome import Outcome
from jaxremat.step.program import StepProgram

_MOST_GROUPS = 6  # lines of a message
_TELLING = 0.1  # of the budget


def refusal(program: StepProgram, smallest: Outcome, peak_bytes: int, budget_bytes: int) -> BudgetError:
    """The error for a budget that nothing found keeps to.

    Args:
      program: the step.
      smallest: the outcome of the smallest peak.
      peak_bytes: that peak: compiled where plans are, predicted otherwise.
      budget_bytes: the budget.
    """
    groups = argument_groups(program)
    resident = smallest.posed.graph.resident_bytes
    arguments = sum(program.input_bytes)
    lines = [
        f"no plan of this step fits in {format_bytes(budget_bytes)}; the minimum peak that was reached is"
        f" {format_bytes(peak_bytes)} ({peak_bytes} bytes).",
        "There, these are live:",
        *(f"  {format_bytes(group.size_bytes)}  {group.sentence}" for group in groups[:_MOST_GROUPS]),
        f"  {format_bytes(max(resident - arguments, 0))}  results that take over no argument's buffer",
        f"  {format_bytes(max(peak_bytes - resident, 0))}  intermediate values",
        "What would lower it:",
        *(f"  - {remedy}" for remedy in _remedies(groups, resident, peak_bytes, budget_bytes)),
    ]
    return BudgetError("\n".join(lines), min_peak_bytes=peak_bytes, budget_bytes=budget_bytes)


def _remedies(groups: tuple[ArgumentGroup, ...], resident: int, peak_bytes: int, budget_bytes: int) -> list[str]:
    remedies = [*donation_warnings(groups)]
    for group in groups:
        if group.role != "batch" and group.size_bytes >= _TELLING * budget_bytes:
            remedies.append(
                f"{group.name}: {group.role} {format_bytes(group.size_bytes)} of {format_bytes(budget_bytes)}:"
                f" {_advice(group.role)}"
            )
    if peak_bytes - resident >= _TELLING * budget_bytes:
        remedies.append(
            f"a smaller batch, or sharding it: {format_bytes(peak_bytes - resident)} are intermediate values"
        )
    return [*remedies, f"a budget of at least {peak_bytes} bytes"]


def _advice(role: str) -> str:
    if role == "optimizer state":
        return "shard it or move it to the host, or take an optimizer that keeps less"
    return "shard it, or keep it in a narrower dtype"
