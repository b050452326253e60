"""What a permission wins beside what was found without it, as compiled."""

from __future__ import annotations

from collections.abc import Callable

from jaxremat.compiled.compile import MemoryReport
from jaxremat.planner.contract import TOLD_APART
from jaxremat.planner.correction import CLOSE_ENOUGH
from jaxremat.planning.compilations import Compilations, Predicted

_MOST_TRIALS = 2  # what was compiled without the permission taught already; one more where the first does not fit


class PermittedSearch[O: Predicted]:
    """What is faster with a permission.

    Args:
      propose: from a number of bytes to the fastest outcome within them, by prediction; None where it takes no
        permission.
      seconds: the time of one run of an outcome, by what was compiled.
      compilations: outcomes with the permission and without, as compiled.
      plain: the program as it stands.
    """

    def __init__(
        self,
        propose: Callable[[int], O | None],
        seconds: Callable[[O, MemoryReport], float],
        compilations: Compilations[O],
        plain: O,
    ) -> None:
        self._propose = propose
        self._seconds_of = seconds
        self._compilations = compilations
        self._plain = plain

    def beside(self, own: O, limit: int) -> O:
        """What is found without the permission, or what is faster with it, as predicted and as compiled, by more than
        can be told apart.

        Args:
          own: what is found without the permission.
          limit: what a compiled peak must not exceed.
        """
        compiled = self._compilations
        aim = compiled.learnt_bytes(own, limit)
        for _ in range(_MOST_TRIALS):
            found = self._propose(int(aim))
            if found is None or TOLD_APART * found.cost >= self._as_predicted(own):
                break
            if compiled.fits(found, limit):
                return found if TOLD_APART * self._seconds(found) < self._seconds(own) else own
            aim = (1 - CLOSE_ENOUGH) * compiled.learnt_bytes(found, limit)
        return own

    def _as_predicted(self, own: O) -> float:
        """The time of an outcome, or, where it took more as compiled, what would have been predicted of that."""
        longer = self._seconds(own) / self._seconds(self._plain)
        return max(own.cost, longer * self._plain.cost)

    def _seconds(self, outcome: O) -> float:
        return self._seconds_of(outcome, self._compilations.report(outcome))
