"""The curve of peak memory against extra time of one program, with what people choose by hand drawn on it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxremat.backends.devices import resolve_target
from jaxremat.backends.memory import usable_bytes
from jaxremat.base.budget import LEAST, Budget, budget_bytes, format_bytes, parse_budget
from jaxremat.base.collecting import collected_seldom
from jaxremat.base.errors import BudgetError
from jaxremat.planner.by_hand import Policy, dots, nothing
from jaxremat.planning.plan import Plan
from jaxremat.planning.planning import Planning
from jaxremat.planning.presets import Preset, evaluate_preset
from jaxremat.planning.request import checked_request
from jaxremat.show.front import FrontView, PointView, front_to_html, front_to_text
from jaxremat.show.progress import track

DEFAULT_BUDGETS = (0.9, 0.75, 0.6, 0.5, 0.4, 0.3, 0.25, 0.2)  # about a quarter less each time, where curves bend


@dataclasses.dataclass(frozen=True, eq=False)
class Point:
    """One plan on the curve.

    Attributes:
      plan: the plan.
      peak_bytes: compiled where the plan was compiled, predicted otherwise.
      overhead: extra time, as a fraction.
    """

    plan: Plan

    @property
    def peak_bytes(self) -> int:
        return self.plan.compiled.peak_bytes if self.plan.compiled else self.plan.peak_bytes

    @property
    def overhead(self) -> float:
        return self.plan.overhead


@dataclasses.dataclass(frozen=True, eq=False)
class Front:
    """Plans of one program, from the most memory and the least time to the opposite; the program as written is among
    them unless a plan takes less memory and no more time.

    Attributes:
      points: falling in peak, rising in overhead; none beats another in both.
      presets: what checkpoints by hand are predicted to take.
      unmet: the budgets, in bytes, in which nothing was found.
      budgets_bytes: the budgets that were asked for.
      least_bytes: the smallest peak that was reached, by a plan or in search of one.
    """

    points: tuple[Point, ...]
    presets: tuple[Preset, ...]
    unmet: tuple[int, ...] = ()
    budgets_bytes: tuple[int, ...] = ()
    least_bytes: int = 0

    def best(self, budget: Budget) -> Plan:
        """The plan of the curve with the least extra time whose peak is within a budget.

        Args:
          budget: bytes, text such as "12GiB", a fraction of the peak of the program as written, or "least".

        Raises:
          BudgetError: if no point of the curve is within it.
        """
        if budget == LEAST:
            return min(self.points, key=lambda point: point.peak_bytes).plan
        first = self.points[0].plan
        limit = budget_bytes(budget, first.baseline_peak_bytes, usable_bytes(resolve_target(first.target)))
        within = [point for point in self.points if point.peak_bytes <= limit]
        if not within:
            least = min(point.peak_bytes for point in self.points)
            raise BudgetError(
                f"no point of the curve is within {format_bytes(limit)}; the smallest has {format_bytes(least)}"
                f" ({least} bytes). Ask for that, or compute the curve for smaller budgets.",
                min_peak_bytes=least,
                budget_bytes=limit,
            )
        return min(within, key=lambda point: (point.overhead, point.peak_bytes)).plan

    def __str__(self) -> str:
        return front_to_text(self._view)

    def _repr_html_(self) -> str:
        return front_to_html(self._view)

    @property
    def _view(self) -> FrontView:
        first = self.points[0].plan
        return FrontView(
            points=tuple(_view(point) for point in self.points),
            presets=tuple(PointView(p.name, p.peak_bytes, p.overhead, meaning=p.meaning) for p in self.presets),
            baseline_bytes=first.baseline_peak_bytes,
            target=first.target,
            budgets_bytes=self.budgets_bytes,
            unmet_bytes=self.unmet,
            least_bytes=self.least_bytes,
        )


@collected_seldom()
def pareto(
    fun: Callable[..., Any],
    *args: Any,
    budgets: Sequence[Budget] | None = None,
    policies: Mapping[str, Policy] | None = None,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    solver: str = "auto",
    target: str | None = None,
    emit: str = "schedule",
    compile: bool = False,
    seed: int = 0,
) -> Front:
    """Plans a program for several budgets, and predicts what checkpoints by hand would take.

    Args:
      fun: any JAX function.
      args: arrays or ShapeDtypeStructs, in trees.
      budgets: as in `jaxremat.plan`; eight fractions from 0.9 to 0.2 by default. Those that cannot be met are left out.
      policies: further policies of `jax.checkpoint` by name, drawn beside "none", "full" and "dots".
      argnums, has_aux, solver, target, emit, seed: as in `jaxremat.plan`.
      compile: whether every plan is compiled and corrected until it fits; predicted otherwise.

    Returns:
      A Front: `points`, `presets`, `best(budget)`; it draws itself in a notebook.

    Raises:
      ArgumentError: for a budget or an option that cannot be understood.
    """
    budgets = DEFAULT_BUDGETS if budgets is None else tuple(budgets)
    for budget in budgets:
        parse_budget(budget)
    request = checked_request(
        fun, args, argnums=argnums, has_aux=has_aux, solver=solver, target=target, emit=emit,
        verify="compile" if compile else "replay", seed=seed,
    )  # fmt: skip
    planning = Planning(request)
    plans, refused, asked_bytes = [planning.plan(1.0)], [], []
    for budget in track(budgets, "planning"):
        try:
            plans.append(planning.plan(budget))
            asked_bytes.append(plans[-1].budget_bytes)
        except BudgetError as error:
            refused.append(error)
            asked_bytes.append(error.budget_bytes)
    presets = [Preset("none", plans[0].baseline_timeline.peak_bytes, 0.0, "the program as written")]
    for name, policy in {"full": nothing, "dots": dots, **(policies or {})}.items():
        device = planning.request.device
        presets.append(
            evaluate_preset(name, policy, planning.baseline.outcome.problem, plans[0].baseline_timeline, device)
        )
    points = [Point(plan) for plan in plans]
    peaks = [*(point.peak_bytes for point in points), *(error.min_peak_bytes for error in refused)]
    return Front(
        points=_monotone(points),
        presets=tuple(presets),
        unmet=tuple(error.budget_bytes for error in refused),
        budgets_bytes=tuple(asked_bytes),
        least_bytes=min(peaks),
    )


def _monotone(points: Sequence[Point]) -> tuple[Point, ...]:
    """The points that no other one beats in both memory and time, by falling peak."""
    front: list[Point] = []
    for point in sorted(points, key=lambda p: (p.overhead, p.peak_bytes)):
        if not front or point.peak_bytes < front[-1].peak_bytes:
            front.append(point)
    return tuple(front)


def _view(point: Point) -> PointView:
    share = point.plan.budget_bytes / max(point.plan.baseline_peak_bytes, 1)
    compiled = point.plan.compiled.peak_bytes if point.plan.compiled else None
    return PointView(f"{share:.0%}", point.plan.peak_bytes, point.overhead, compiled)
