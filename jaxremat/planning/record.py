"""From an outcome to the record that users hold."""

from __future__ import annotations

from jaxremat.base.stopwatch import Stopwatch
from jaxremat.compiled.compile import MemoryReport
from jaxremat.planner.contract import Outcome
from jaxremat.planning.baseline import Baseline
from jaxremat.planning.compilations import Compilations
from jaxremat.planning.plan import Plan
from jaxremat.planning.predicted_search import seconds_of
from jaxremat.planning.subject import Subject
from jaxremat.planning.warnings import budget_warnings, storage_warnings
from jaxremat.solvers.registry import solver_parameters


def record(
    subject: Subject,
    outcome: Outcome,
    limit: int,
    *,
    compilations: Compilations[Outcome],
    baseline: Baseline,
    clock: Stopwatch,
) -> Plan:
    """The plan that an outcome is.

    Args:
      subject: what was planned.
      outcome: what was found.
      limit: the budget, in bytes.
      compilations: what was compiled on the way.
      baseline: the program as it is written, with no part in chunks.
      clock: what has counted the time of planning.
    """
    request = subject.request
    report = compilations.known(outcome)
    return Plan(
        decision=subject.decision(outcome),
        outcome=outcome,
        budget_bytes=limit,
        peak_bytes=_peak_bytes(request.verify, outcome, report, limit),
        baseline_peak_bytes=baseline.peak_bytes if report is None else baseline.report.peak_bytes,
        overhead=seconds_of(outcome, report) / seconds_of(baseline.outcome, report and baseline.report) - 1,
        compiled=report,
        compilations=len({id(trial) for trial in (*compilations.trials, *baseline.compilations.trials)}),
        solve_seconds=clock.seconds,
        solver=request.solver.name,
        solver_parameters=solver_parameters(request.solver),
        target=request.device.name,
        warnings=(*subject.warnings, *storage_warnings(outcome, report), *budget_warnings(outcome, report, limit)),
    )


def _peak_bytes(verify: str, outcome: Outcome, report: MemoryReport | None, limit: int) -> int:
    """The predicted peak; where predictions are trusted, and the compiler has disproved one, the compiled peak."""
    is_disproved = report is not None and report.peak_bytes <= limit < outcome.peak_bytes
    return report.peak_bytes if report is not None and verify == "replay" and is_disproved else outcome.peak_bytes
