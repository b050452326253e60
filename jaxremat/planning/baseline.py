"""What plans are compared with: the program as it is written."""

from __future__ import annotations

import dataclasses

from jaxremat.compiled.compile import MemoryReport
from jaxremat.planner.contract import Outcome
from jaxremat.planning.compilations import Compilations


@dataclasses.dataclass(frozen=True, eq=False)
class Baseline:
    """A program without recomputation.

    Attributes:
      outcome: the program.
      compilations: where its report is.
      verify: whether plans are compiled ("compile") or predicted ("replay").
    """

    outcome: Outcome
    compilations: Compilations[Outcome]
    verify: str

    @property
    def report(self) -> MemoryReport:
        """Its memory, compiled."""
        return self.compilations.report(self.outcome)

    @property
    def peak_bytes(self) -> int:
        """Its peak: compiled where plans are, predicted otherwise."""
        return self.report.peak_bytes if self.verify == "compile" else self.outcome.peak_bytes
