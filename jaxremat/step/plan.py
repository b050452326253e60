"""What a step's plan decided, its numbers, and who holds what at the peak."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxremat.base.budget import format_bytes
from jaxremat.base.errors import JaxrematError
from jaxremat.compiled.compile import MemoryReport
from jaxremat.graph.replay import Timeline
from jaxremat.graph.scheduled import first_backward, in_order, schedule_program
from jaxremat.planner.problem import Problem
from jaxremat.report.explanation import explain
from jaxremat.report.parts import Version
from jaxremat.report.report import Numbers, Report, report_of
from jaxremat.show.described import Described
from jaxremat.show.sentences import explanation_lines
from jaxremat.step.decision import ProgramDecision
from jaxremat.step.hills import cut_at
from jaxremat.step.holders import ArgumentGroup, argument_groups, donation_warnings
from jaxremat.step.outcome import StepOutcome
from jaxremat.step.program import StepProgram
from jaxremat.step.scheduling import turn_of
from jaxremat.step.storage import step_plan_text
from jaxremat.trace.round_trips import inexactness

_STAYS = ("program", "outcome", "plain")
_TRAVELS = (
    *("decision", "is_plain", "peak_bytes", "timeline", "overhead", "target", "arguments", "warnings", "report"),
    *("_values", "_in_slices", "_file_text"),
)
_UNMEASURED = (
    "how far that takes gradients depends on the arguments: a plan of the loss with the same permission measures it,"
    " jaxremat.plan(loss, ...).measured(*args)"
)


@dataclasses.dataclass(frozen=True, eq=False)
class StepPlan(Described):
    """A whole step, planned for a budget. Immutable.

    Attributes:
      program: the step.
      outcome: how it runs.
      plain: the step as written.
      budget_bytes: the budget.
      baseline_peak_bytes: peak of the step as written: compiled where the plan was compiled, predicted otherwise.
      compiled: the report of the compiled step, None where nothing was compiled.
      compilations: how many compilations the plan took, the step as written included.
      solve_seconds: wall time of tracing and solving, compilations excluded.
      solver: name of the solver.
    """

    program: StepProgram
    outcome: StepOutcome
    plain: StepOutcome
    budget_bytes: int
    baseline_peak_bytes: int
    compiled: MemoryReport | None
    compilations: int
    solve_seconds: float
    solver: str

    @functools.cached_property
    def decision(self) -> ProgramDecision:
        """What to do; all that `save` needs."""
        return self.outcome.decision

    @functools.cached_property
    def is_plain(self) -> bool:
        """Whether the step is left as it is written."""
        return self.program.is_as_written(self.decision)

    @functools.cached_property
    def peak_bytes(self) -> int:
        """The predicted peak, in bytes."""
        return self.outcome.peak_bytes

    @functools.cached_property
    def timeline(self) -> Timeline:
        """What the compiled step is predicted to hold, kernel by kernel."""
        return self.outcome.timeline

    @functools.cached_property
    def overhead(self) -> float:
        """Extra time over the step as written, as a fraction, by the cost model."""
        return self.outcome.cost / self.plain.cost - 1

    @functools.cached_property
    def target(self) -> str:
        """Name of the device that was planned for."""
        return self.outcome.posed.device.name

    @functools.cached_property
    def arguments(self) -> tuple[ArgumentGroup, ...]:
        """Who holds what of the arguments, by path, the largest first."""
        return argument_groups(self.program)

    @functools.cached_property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know: state that is not donated, above all, and what may be rounded."""
        told = inexactness(self.decision.forms)
        return *donation_warnings(self.arguments), *([f"{told}; {_UNMEASURED}"] if told else [])

    def run(self, inputs: Sequence[Any]) -> list[Any]:
        """The planned step, from flat inputs to flat outputs."""
        return self.outcome.script.run(inputs)

    def explain(self, pattern: str | None = None) -> str:
        """Why values are saved or not, what they hold, and what recomputing them costs.

        Args:
          pattern: a part of a module path, of a name given with `checkpoint_name`, or of a source line; None for all.

        Raises:
          ArgumentError: if nothing matches; the message lists paths that exist.
        """
        found = explain(self._decided, pattern, self.report.table, self.plain.cost)
        return "\n".join(explanation_lines(found))

    def summary(self) -> dict[str, Any]:
        """Plain values, for experiment trackers and JSON."""
        held = {group.name: group.size_bytes for group in self.arguments}
        donated = sum(group.donated_bytes for group in self.arguments)
        return {**super().summary(), "argument_bytes_by_path": held, "donated_bytes": donated}

    def save(self, path: str | Path) -> None:
        """Writes the plan as JSON; `step.load_plan(path, *args)` of the jitted step reads it back."""
        Path(path).write_text(self._file_text)

    def __str__(self) -> str:
        return "\n".join([super().__str__(), *self._in_slices, "", holders_text(self)])

    def __repr__(self) -> str:
        budget, peak = format_bytes(self.budget_bytes), format_bytes(self.peak_bytes)
        return f"<StepPlan for {budget} on {self.target}: predicted {peak}, extra time {self.overhead:.1%}>"

    def __getstate__(self) -> dict[str, Any]:
        """What travels: decision, numbers and all that the display says; the step itself stays behind."""
        names = [field.name for field in dataclasses.fields(self) if field.name not in _STAYS]
        return {name: getattr(self, name) for name in (*names, *_TRAVELS)}

    def __getattr__(self, name: str) -> Any:
        if name in _STAYS:
            raise JaxrematError(
                "this plan was unpickled, and the step that it was made for did not travel with it: save it, and read"
                " it with the jitted step, step.load_plan(path, *args)"
            )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @functools.cached_property
    def _in_slices(self) -> list[str]:
        return ["", *map(str, self.program.chunks)] if self.program.chunks else []

    @functools.cached_property
    def _file_text(self) -> str:
        return step_plan_text(self)

    @property
    def numbers(self) -> Numbers:
        return Numbers.of(self, "plain" if self.is_plain else "schedule")

    @functools.cached_property
    def report(self) -> Report:
        return report_of(self.numbers, _version(self.plain), self._planned, self._resident)

    @property
    def _resident(self) -> dict[str, int]:
        """Names and bytes of what is live throughout, by who holds it."""
        held = {group.sentence: group.size_bytes for group in self.arguments}
        results = self.outcome.posed.graph.resident_bytes - sum(held.values())
        return {**held, "other results": results} if results > 0 else held

    @functools.cached_property
    def _planned(self) -> Version:
        return _version(self.outcome)


def holders_text(plan: StepPlan) -> str:
    """The arguments by path: bytes, and whether results take over their buffers."""
    rows = [(format_bytes(group.size_bytes), group.sentence) for group in plan.arguments]
    width = max((len(size) for size, _ in rows), default=0)
    return "\n".join(["arguments, by path", *(f"  {size:>{width}}  {what}" for size, what in rows)])


def _version(outcome: StepOutcome) -> Version:
    """The program as the display sees it: what runs after the highest peak's cut is its backward."""
    posed, schedule = outcome.posed, outcome.schedule
    turn = turn_of(posed.graph, posed.run_seconds())
    graph = cut_at(posed.graph, turn)
    problem = Problem(posed.joint.primal, (), posed.joint, graph, posed.device)
    if outcome.decision.is_plain:
        return Version(problem, in_order(graph), outcome.timeline, posed.device)
    start = min([first_backward(graph.backward, schedule.steps), *schedule.barriers])
    scheduled = schedule_program(graph, schedule.steps, backward_start=start, barriers=schedule.barriers)
    return Version(problem, scheduled, outcome.timeline, posed.device)
