"""Schedules whose saved values may wait rounded or projected, and no farther from exact than pays.

That costs accuracy, which no price of a byte knows. So narrower forms count only where the plan with wider ones, or
with none, takes more time, by more than times can be told apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from jaxremat.planner.contract import TOLD_APART, Outcome, Planner, cheapest_within


class NarrowPlanner:
    """The outcomes of several planners, which take ever narrower forms.

    Args:
      planners: of one program and device, the exact one first, then by falling width, projections last; each is made
        when it is asked.
    """

    def __init__(self, planners: Iterable[Callable[[], Planner]]) -> None:
        first, *self._unmade = planners
        self._made: list[Planner] = [first()]
        self.traits = self._made[0].traits

    @property
    def unpermitted(self) -> Planner:
        """The exact planner."""
        return self._made[0]

    @property
    def plain(self) -> Outcome:
        """The program as it stands."""
        return self._made[0].plain

    def fit(self, replayed_bytes: int) -> Outcome:
        """The outcome of the widest forms that is within a replayed peak and takes no more time than others by more
        than can be told apart; or the one with the smallest peak."""
        found = [self._made[0].fit(replayed_bytes)]
        if found[0].replayed_bytes <= replayed_bytes and found[0].cost <= TOLD_APART * self.plain.cost:
            return found[0]
        found += [planner.fit(replayed_bytes) for planner in self._all[1:]]
        most_bytes = max(replayed_bytes, cheapest_within(found, replayed_bytes).replayed_bytes)
        return widest([each for each in found if each.replayed_bytes <= most_bytes], lambda outcome: outcome.cost)

    def least(self) -> Sequence[Outcome]:
        """Outcomes of small replayed peak, the smallest first."""
        each = [outcome for planner in self._all for outcome in planner.least()]
        return sorted(each, key=lambda outcome: (outcome.replayed_bytes, outcome.cost))

    def near_misses(self, best: Outcome, cost: float, peak_bytes: int) -> Iterable[Outcome]:
        """Those of the planner of the widest forms."""
        return self._made[0].near_misses(best, cost, peak_bytes)

    @property
    def _all(self) -> Sequence[Planner]:
        self._made += [make() for make in self._unmade]
        self._unmade = []
        return self._made


def widest[C](candidates: Sequence[C], cost: Callable[[C], float]) -> C:
    """Of candidates by falling width, the first that costs no more than others by more than can be told apart."""
    least = min(map(cost, candidates))
    return next(each for each in candidates if cost(each) <= TOLD_APART * least)
