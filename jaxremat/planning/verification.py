"""A plan compiled again, for its own target or another: what the promise is worth there."""

from __future__ import annotations

import dataclasses

from jaxremat.backends.devices import Device, resolve_target
from jaxremat.base.budget import format_bytes
from jaxremat.base.errors import ArgumentError
from jaxremat.compiled.compile import CompiledGradient, MemoryReport
from jaxremat.planner.prediction import predict
from jaxremat.planning.executable import compile_program
from jaxremat.planning.plan import Plan
from jaxremat.planning.recompute_check import copies_undone, eliminated, recompute_checks

_SUSPICIOUS = 1.1  # beyond what predictions are off by at most on CPUs and GPUs but once: prediction.md
_GROSSLY_OVER = 1.5  # no prediction for a CPU or GPU is as far off: prediction.md


@dataclasses.dataclass(frozen=True)
class Verification:
    """What a planned gradient program takes on a target, as its compiler says.

    Attributes:
      memory: the compiler's report.
      budget_bytes: the plan's budget.
      predicted_bytes: the peak that the target's memory model predicts; None where it has nothing to go by.
      warnings: what was planned and did not take effect, with the place.
    """

    memory: MemoryReport
    budget_bytes: int
    predicted_bytes: int | None
    warnings: tuple[str, ...] = ()

    @property
    def target(self) -> str:
        """Name of the device."""
        return self.memory.target

    @property
    def argument_bytes(self) -> int:
        return self.memory.argument_bytes

    @property
    def output_bytes(self) -> int:
        return self.memory.output_bytes

    @property
    def temp_bytes(self) -> int:
        return self.memory.temp_bytes

    @property
    def alias_bytes(self) -> int:
        """Outputs that reuse donated arguments."""
        return self.memory.alias_bytes

    @property
    def peak_bytes(self) -> int:
        """argument + output + temp − alias."""
        return self.memory.peak_bytes

    @property
    def compile_seconds(self) -> float:
        return self.memory.compile_seconds

    @property
    def fits(self) -> bool:
        """Whether the compiled peak is within the budget."""
        return self.peak_bytes <= self.budget_bytes

    @property
    def predicted_ratio(self) -> float | None:
        """Predicted over compiled peak."""
        return None if self.predicted_bytes is None else self.predicted_bytes / self.peak_bytes

    def __str__(self) -> str:
        peak, budget = format_bytes(self.peak_bytes), format_bytes(self.budget_bytes)
        apart = format_bytes(abs(self.budget_bytes - self.peak_bytes))
        verdict = f"fits in {budget} with {apart} to spare" if self.fits else f"exceeds {budget} by {apart}"
        lines = [
            f"{self.target}: compiled peak {peak} {verdict}",
            f"arguments {format_bytes(self.argument_bytes)}, outputs {format_bytes(self.output_bytes)}, temporaries"
            f" {format_bytes(self.temp_bytes)}, aliased {format_bytes(self.alias_bytes)};"
            f" compiled in {self.compile_seconds:.1f} s",
        ]
        if self.predicted_bytes is not None:
            lines.append(f"predicted {format_bytes(self.predicted_bytes)}, {self.predicted_ratio:.2f} of the compiled")
        return "\n".join([*lines, *(f"warning: {warning}" for warning in self.warnings)])


def verify(plan: Plan, target: str | None = None) -> Verification:
    """Compiles a plan's gradient program for a target, real or absent, and reads its memory.

    The plan runs from what it holds; the function it was made for is not needed. Only recomputation outside loop bodies
    is looked up in the compiled program.

    Args:
      plan: the plan.
      target: name of a device, such as "h200"; None for the one that the plan was made for.

    Returns:
      The report; its text begins with a headline.

    Raises:
      ArgumentError: for something that is no plan, or a target that is not known.
      TargetError: if this machine cannot compile for the target; the message names what to install.
    """
    if not isinstance(plan, Plan):
        raise ArgumentError(f"verify takes a Plan, which jaxremat.plan makes, not {type(plan).__name__}")
    device = resolve_target(plan.target if target is None else target)
    compiled = compile_plan(plan, device)
    predicted = _predicted_bytes(plan, device)
    problem, program = plan.planned
    undone_copies = copies_undone(problem.joint, program, compiled.report)
    warnings = (*_eliminated(plan, compiled, predicted), *undone_copies, *_swollen(compiled.report, predicted))
    return Verification(compiled.report, plan.budget_bytes, predicted, warnings)


def compile_plan(plan: Plan, device: Device) -> CompiledGradient:
    """The gradient program of a plan, compiled for a device."""
    primal = plan.problem.primal
    return compile_program(primal, plan.decision.emitted(primal), plan.decision.has_aux, device)


def _predicted_bytes(plan: Plan, device: Device) -> int | None:
    if device.name == plan.target:
        return plan.peak_bytes
    if plan.decision.emit in ("plain", "schedule"):
        problem, program = plan.planned
        return predict(problem.joint, problem.graph, program, device).peak_bytes
    return None


def _eliminated(plan: Plan, compiled: CompiledGradient, predicted_bytes: int | None) -> tuple[str, ...]:
    """Recomputation that is planned and not in the compiled program."""
    if plan.decision.emit != "schedule":
        return ()
    joint, script = plan.decision.form.script(plan.problem.primal, plan.decision.device, plan.problem.joint)
    found = recompute_checks(joint, plan.problem.graph, plan.schedule, script, compiled.hlo_text())
    return eliminated(found, suspicious=compiled.report.peak_bytes > _SUSPICIOUS * (predicted_bytes or 0))


def _swollen(report: MemoryReport, predicted_bytes: int | None) -> tuple[str, ...]:
    """A warning where the compiler needs far more than was predicted."""
    if predicted_bytes is None or report.peak_bytes <= _GROSSLY_OVER * predicted_bytes:
        return ()
    return (
        f"{report.target} needs {format_bytes(report.peak_bytes)}, {report.peak_bytes / predicted_bytes:.1f} times the"
        f" predicted {format_bytes(predicted_bytes)}: plan for this target with verify='compile'",
    )
