"""Outcomes of which pairs of scans may leave values rounded or projected, between their first and their second scan.

That costs accuracy, which no price of a byte knows. As in `planner.narrow`, narrower forms count only where the
outcome with wider ones, or with none, takes more time, by more than times can be told apart.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from jaxremat.planner.contract import TOLD_APART
from jaxremat.planner.correction import Correction
from jaxremat.planner.narrow import widest
from jaxremat.step.outcome import StepOutcome
from jaxremat.step.planner import ProgramPlanner, by_peak
from jaxremat.step.transfers import HostPlanner
from jaxremat.trace.round_trips import LOSSLESS


class NarrowStepPlanner:
    """Outcomes with and without inexact forms, for any budget.

    Args:
      exact: proposes what is exact.
      inexact: the planner whose pairs may leave values in some forms.
      forms: sets of forms, the nearest to exact first.
    """

    def __init__(
        self,
        exact: ProgramPlanner | HostPlanner,
        inexact: Callable[[tuple[str, ...]], ProgramPlanner],
        forms: Sequence[tuple[str, ...]],
    ) -> None:
        self._exact = exact
        self._inexact = inexact
        self._forms = forms

    @property
    def plain(self) -> StepOutcome:
        """The step as it stands."""
        return self._exact.plain

    @property
    def unpermitted(self) -> ProgramPlanner | HostPlanner:
        """The planner of what is exact."""
        return self._exact

    def predicted(self, limit: int) -> Correction[StepOutcome, None]:
        """The cheapest outcome whose predicted peak is within a limit, of the widest forms that are as cheap; or the
        one with the smallest peak."""
        found = [self._exact.predicted(limit)]
        if self._costs(found[0]) > TOLD_APART * self.plain.cost:
            found += [planner.predicted(limit) for planner in self._narrow]
        fitting = [each for each in found if each.best]
        if not fitting:
            return min(found, key=lambda each: each.smallest.peak_bytes)
        return widest(fitting, self._costs)

    def smallest_few(self, number: int) -> list[StepOutcome]:
        """Outcomes of small replayed peak, no two alike."""
        each = [outcome for planner in (self._exact, *self._narrow) for outcome in planner.smallest_few(number)]
        return sorted(each, key=by_peak)

    @functools.cached_property
    def _narrow(self) -> Sequence[ProgramPlanner]:
        """The nearest to exact first; none where no scans are paired."""
        planners = (self._inexact((*LOSSLESS, *forms)) for forms in self._forms)
        return [planner for planner in planners if planner.has_pairs]

    def _costs(self, correction: Correction[StepOutcome, None]) -> float:
        return correction.best.candidate.cost if correction.best else float("inf")
