"""What the compiler says of what was planned: each once. It teaches by how much predictions are off."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from jaxremat.base.budget import format_bytes
from jaxremat.base.stopwatch import Stopwatch
from jaxremat.base.telling import tell
from jaxremat.compiled.compile import MemoryReport
from jaxremat.planner.correction import Trial

logger = logging.getLogger("jaxremat")


class Predicted(Protocol):
    """What can be compiled, with what is predicted of it: bytes and seconds."""

    @property
    def peak_bytes(self) -> int: ...
    @property
    def cost(self) -> float: ...


class Compilations[O: Predicted]:
    """Outcomes of one program with their reports.

    Args:
      compile: from an outcome to its report.
      clock: stands still while something is compiled.
      is_as_written: whether an outcome leaves the program alone; all that do are one program.
    """

    def __init__(
        self, compile: Callable[[O], MemoryReport], clock: Stopwatch, is_as_written: Callable[[O], bool]
    ) -> None:
        self._compile = compile
        self._clock = clock
        self._is_as_written = is_as_written
        self._trials: dict[int | None, Trial[O, MemoryReport]] = {}

    @property
    def trials(self) -> Sequence[Trial[O, MemoryReport]]:
        """What was compiled so far."""
        return list(self._trials.values())

    def trial(self, outcome: O) -> Trial[O, MemoryReport]:
        """An outcome with its report and its compiled peak.

        Raises:
          TargetError: if this machine cannot compile for the device.
        """
        key = self._key(outcome)
        if key not in self._trials:
            told = f"what is predicted to take {format_bytes(outcome.peak_bytes)}" if key else "the program as written"
            tell(f"compiling {told}, {len(self._trials)} compiled before")
            with self._clock.paused():
                report = self._compile(outcome)
            logger.debug("%s: compiled %s", told, format_bytes(report.peak_bytes))
            self._trials[key] = Trial(outcome, report, report.peak_bytes)
        return self._trials[key]

    def report(self, outcome: O) -> MemoryReport:
        """The report of an outcome."""
        return self.trial(outcome).measurement

    def known(self, outcome: O) -> MemoryReport | None:
        """The report of an outcome that was compiled before."""
        return self.report(outcome) if self._key(outcome) in self._trials else None

    def measure(self, outcome: O) -> tuple[int, MemoryReport]:
        """(compiled peak, report) of an outcome, as loops of correction ask for it."""
        report = self.report(outcome)
        return report.peak_bytes, report

    def fits(self, outcome: O, limit: int, *, unused: float = 1.0) -> bool:
        """Whether an outcome takes no more than the limit, and leaves at most a part of it unused."""
        return (1 - unused) * limit <= self.report(outcome).peak_bytes <= limit

    def fastest_within(self, outcomes: Iterable[O], limit: int) -> O | None:
        """The fastest, as compiled, of those whose compiled peak is within the limit."""
        fitting = [outcome for outcome in outcomes if self.fits(outcome, limit)]
        return min(fitting, key=self.seconds, default=None)

    def seconds(self, outcome: O) -> float:
        """What an outcome takes as compiled; as predicted, where compiled programs are not timed."""
        return self.report(outcome).seconds or outcome.cost

    def smallest(self) -> Trial[O, MemoryReport] | None:
        """The smallest that was compiled so far."""
        return min(self.trials, key=lambda trial: trial.peak_bytes, default=None)

    def learnt_bytes(self, outcome: O, limit: int) -> float:
        """What is predicted of a program that takes the limit, were its prediction as far off as an outcome's."""
        return outcome.peak_bytes * limit / self.report(outcome).peak_bytes

    def _key(self, outcome: O) -> int | None:
        """The same for outcomes of the same program."""
        return None if self._is_as_written(outcome) else id(outcome)
