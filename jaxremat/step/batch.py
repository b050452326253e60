"""The largest batch that a step can take in a number of bytes, and what larger ones would cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import Any

from jaxremat.base.budget import Budget, format_bytes, parse_budget
from jaxremat.base.errors import ArgumentError, BudgetError
from jaxremat.planner.correction import CLOSE_ENOUGH
from jaxremat.show.html import framed, grid
from jaxremat.show.text import aligned
from jaxremat.show.units import format_seconds
from jaxremat.step.jit import jit
from jaxremat.step.plan import StepPlan
from jaxremat.step.planned_step import PlannedStep

_MOST_TRIALS = 2  # of a size: with the step as written, half of six compilations
_COLUMNS = ("batch", "as written", "planned", "extra time", "per example", "")


@dataclasses.dataclass(frozen=True)
class BatchRow:
    """One size.

    Attributes:
      size: of the batch.
      written_bytes: predicted peak of the step as written.
      planned_bytes: predicted peak within the budget; the least that was reached where nothing fits; compiled for the
        size that was chosen.
      overhead: extra time of the plan, as a fraction; None where nothing fits.
      seconds_per_example: predicted; None where nothing fits.
      is_compiled: whether `planned_bytes` was read from the compiled step.
    """

    size: int
    written_bytes: int
    planned_bytes: int
    overhead: float | None
    seconds_per_example: float | None
    is_compiled: bool = False

    @property
    def fits(self) -> bool:
        return self.overhead is not None


@dataclasses.dataclass(frozen=True, eq=False)
class LargestBatch:
    """The batch to train with.

    Attributes:
      size: of the batch.
      plan: of its step; `plan.compiled` holds the proof where plans are compiled.
      table: one row per size that was tried, by size.
      budget_bytes: the budget.
      compilations: how many steps were compiled, over all sizes.
    """

    size: int
    plan: StepPlan
    table: tuple[BatchRow, ...]
    budget_bytes: int
    compilations: int

    @property
    def overhead(self) -> float:
        """Extra time of the step at this size over the step as written, as a fraction, by the cost model."""
        return self.plan.overhead

    def __str__(self) -> str:
        lines = aligned([_COLUMNS, *map(self._cells, self.table)], range(5))
        return "\n".join([self._headline, "", *lines])

    def _repr_html_(self) -> str:
        head = [(escape(name), "right") for name in _COLUMNS]
        rows = [("", [(escape(cell), "right") for cell in self._cells(row)]) for row in self.table]
        return framed(f'<div class="jr-line">{escape(self._headline)}</div>', grid(head, rows, "points"))

    @property
    def _headline(self) -> str:
        return f"batch {self.size} in {format_bytes(self.budget_bytes)} on {self.plan.target}"

    def _cells(self, row: BatchRow) -> tuple[str, ...]:
        note = "chosen" if row.size == self.size else "" if row.fits else "does not fit"
        return (
            str(row.size),
            format_bytes(row.written_bytes),
            format_bytes(row.planned_bytes) + (" compiled" if row.is_compiled else ""),
            "" if row.overhead is None else f"{row.overhead:+.1%}",
            "" if row.seconds_per_example is None else format_seconds(row.seconds_per_example),
            note,
        )


def largest_batch(
    step: Callable[..., Any],
    args_for: Callable[[int], Any],
    *,
    sizes: Iterable[int],
    budget: Budget,
    donate_argnums: int | Sequence[int] = (),
    target: str | None = None,
    verify: str = "compile",
    tolerance: float = 0.1,
    **options: Any,
) -> LargestBatch:
    """The largest batch whose step fits in a budget at about the least time per example.

    Sizes are tried by bisection, by prediction alone, as if time per example fell up to some size and rose from there
    on; the step of the size that is chosen is compiled, and corrected until it fits. Where it does not, after three
    compilations, a size is taken next that is smaller by what was missing.

    Args:
      step: the step.
      args_for: from a size to the step's arguments: a tuple of trees of arrays or ShapeDtypeStructs.
      sizes: sizes to choose from.
      budget: bytes, text such as "80GiB", or "device".
      donate_argnums, target, verify: as in `jaxremat.jit`.
      tolerance: predicted times per example that differ by less than this fraction count as equal, and the largest size
        is taken of those: the cost model leaves out what larger kernels gain. 0 asks for the least time per example,
        a large number for the largest size that fits at all.
      options: further options of `jaxremat.jit`.

    Returns:
      A LargestBatch: `size`, `overhead`, `table`, `plan`.

    Raises:
      BudgetError: if not even the smallest size fits; it says who holds what.
      ArgumentError: for sizes or a budget that cannot be understood.
    """
    choices = sorted(set(sizes))
    if not choices or choices[0] < 1:
        raise ArgumentError(f"sizes={list(choices)} must be positive numbers, at least one")
    if isinstance(parse_budget(budget), float) or budget == "least":
        raise ArgumentError(f"budget={budget!r} changes with the batch: give bytes, text such as '80GiB', or 'device'")
    planned = jit(step, budget=budget, donate_argnums=donate_argnums, target=target, verify=verify, **options)
    tried = _Tried(planned, args_for, choices, tolerance)
    tried.bisect()
    return _chosen(tried)


class _Tried:
    """Predicted plans by size."""

    def __init__(
        self, planned: PlannedStep, args_for: Callable[[int], Any], sizes: Sequence[int], tolerance: float
    ) -> None:
        self.planned = planned
        self.args_for = args_for
        self.sizes = sizes
        self.tolerance = tolerance
        self.plans: dict[int, StepPlan | BudgetError] = {}

    def bisect(self) -> None:
        """Tries sizes until it is known which is the largest that is good."""
        sizes = self.sizes
        self._require(sizes[0])
        low, high = 0, len(sizes)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._is_good(sizes[middle], sizes[middle - 1]) else (low, middle)

    def fits(self, size: int) -> bool:
        return isinstance(self.at(size), StepPlan)

    def _is_good(self, size: int, next_smaller: int) -> bool:
        """Whether a size fits, at about the least time per example so far; or without tolerance, at no more than the
        next smaller one takes."""
        if not self.fits(size):
            return False
        least = self._least if self.tolerance else self.row(next_smaller).seconds_per_example
        return (self.row(size).seconds_per_example or 0.0) <= (1 + self.tolerance) * (least or 0.0)

    @property
    def _least(self) -> float:
        """The least time per example so far."""
        return min(self.row(size).seconds_per_example or 0.0 for size in self.plans if self.fits(size))

    def at(self, size: int) -> StepPlan | BudgetError:
        if size not in self.plans:
            try:
                self.plans[size] = self.planned.predicted(*self.args(size))
            except BudgetError as error:
                self.plans[size] = error
        return self.plans[size]

    def compiled(self, size: int) -> StepPlan | BudgetError:
        """The plan as compiled; its refusal takes the place of what was predicted."""
        try:
            return self.planned.attempt(None if size == self.sizes[0] else _MOST_TRIALS, *self.args(size))
        except BudgetError as error:
            self.plans[size] = error
            return error

    def leave_out_above(self, refused: int, error: BudgetError) -> None:
        """After a refusal, leaves out what cannot fit either: bytes are a line over sizes, which in a step as written
        begins at what does not grow with the batch."""
        smallest = self.sizes[0]
        low, high = (self.row(size).written_bytes for size in (smallest, refused))
        fixed = low - (high - low) * smallest // (refused - smallest)
        share = (error.budget_bytes - fixed) / max(1, error.min_peak_bytes - fixed)
        bound = max(smallest, min((1 - CLOSE_ENOUGH) * share * refused, refused - 1))
        self.sizes = [size for size in self.sizes if size <= bound]
        self.plans = {k: plan for k, plan in self.plans.items() if k <= bound or isinstance(plan, BudgetError)}

    def args(self, size: int) -> tuple[Any, ...]:
        args = self.args_for(size)
        return args if isinstance(args, tuple) else (args,)

    def row(self, size: int) -> BatchRow:
        plan = self.at(size)
        if isinstance(plan, BudgetError):
            written = self.planned.predicted_bytes(*self.args(size))
            return BatchRow(size, written, plan.min_peak_bytes, None, None)
        per_example = plan.outcome.cost / size
        return BatchRow(size, plan.baseline_peak_bytes, plan.peak_bytes, plan.overhead, per_example)

    def preferred(self) -> int:
        """The best of the sizes that are predicted to fit."""
        self.at(self.sizes[-1])
        seconds = {size: self.row(size).seconds_per_example or 0.0 for size in self.plans if self.fits(size)}
        least = min(seconds.values())
        return max(size for size, value in seconds.items() if value <= (1 + self.tolerance) * least)

    def _require(self, size: int) -> None:
        plan = self.at(size)
        if isinstance(plan, BudgetError):
            raise plan


def _chosen(tried: _Tried) -> LargestBatch:
    """The first size, by preference, whose step is found to fit when it is compiled."""
    while isinstance(plan := tried.compiled(size := tried.preferred()), BudgetError):
        if size == tried.sizes[0]:
            raise plan
        tried.leave_out_above(size, plan)
    rows = (_with_proof(tried.row(other), plan if other == size else None) for other in sorted(tried.plans))
    return LargestBatch(size, plan, tuple(rows), plan.budget_bytes, tried.planned.compilations)


def _with_proof(row: BatchRow, plan: StepPlan | None) -> BatchRow:
    if plan is None or plan.compiled is None:
        return row
    return dataclasses.replace(
        row,
        planned_bytes=plan.compiled.peak_bytes,
        overhead=plan.overhead,
        seconds_per_example=plan.outcome.cost / row.size,
        is_compiled=True,
    )
