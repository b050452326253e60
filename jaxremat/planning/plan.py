"""The object that users hold: what was decided, its numbers, and how to apply it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np

from jaxremat import attention
from jaxremat.backends.devices import resolve_target
from jaxremat.base.budget import format_bytes
from jaxremat.base.errors import ArgumentError, EmissionError, PlanMismatchError
from jaxremat.base.policy import NamePolicy
from jaxremat.compiled.compile import MemoryReport
from jaxremat.graph.replay import Timeline, replay
from jaxremat.graph.scheduled import in_order, schedule_program
from jaxremat.planner.decision import Decision
from jaxremat.planner.emission import emit, emit_named
from jaxremat.planner.planner import Planner
from jaxremat.planner.prediction import predict
from jaxremat.planner.problem import Problem, pose
from jaxremat.planning.gradient_check import GradientCheck, check_gradients
from jaxremat.planning.storage import write_plan
from jaxremat.report.explanation import MOST_PROBES, explain, matching, turning_budget
from jaxremat.report.parts import Part, Version
from jaxremat.report.records import as_frame, records_of
from jaxremat.report.report import Numbers, Report, decided, report_of
from jaxremat.report.values import Value
from jaxremat.show.display import show
from jaxremat.show.html import to_html
from jaxremat.show.progress import track
from jaxremat.show.sentences import explanation_lines, turning_sentence
from jaxremat.show.terminal import to_rich
from jaxremat.show.text import terminal_width, to_text
from jaxremat.trace.arguments import Call, call_of
from jaxremat.trace.joint import Primal, describe, read_primal

CHUNKED = "chunk_attention"
"""Key of a decision's `extra`: the planned program is the function with its attention in chunks."""


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """A function's gradient, planned for a budget. Immutable.

    Attributes:
      decision: what to do; all that `save` needs.
      problem: the program that was planned, as a graph.
      schedule: [T] node ids of the problem's graph in execution order.
      timeline: what the compiled program is predicted to hold, kernel by kernel.
      budget_bytes: the budget.
      peak_bytes: the predicted peak, in bytes.
      baseline_peak_bytes: the same for the program without rematerialization: compiled where the plan was compiled,
        predicted otherwise.
      overhead: extra time over the program without rematerialization, as a fraction, by the cost model.
      compiled: the report of the last compilation, None where nothing was compiled.
      compilations: how many compilations the plan took, the plain program's included.
      solve_seconds: wall time of tracing and solving, compilations excluded.
      solver: name of the solver.
      target: name of the device that was planned for.
      warnings: what the user should know.
    """

    decision: Decision
    problem: Problem
    schedule: np.ndarray
    timeline: Timeline
    budget_bytes: int
    peak_bytes: int
    baseline_peak_bytes: int
    overhead: float
    compiled: MemoryReport | None
    compilations: int
    solve_seconds: float
    solver: str
    target: str
    warnings: tuple[str, ...] = ()

    def apply(self, fun: Callable) -> Callable:
        """`fun` with the planned gradient: same signature, same values, same gradients.

        Args:
          fun: the function that was planned, or one that traces to the same program.

        Returns:
          A function for jit, grad, vmap, scan and shard as usual. It raises PlanMismatchError at trace time for
          arguments of another shape or another program, and EmissionError when an argument is differentiated that
          was not planned.
        """

        require_function(fun)

        @functools.wraps(fun)
        def planned(*args, **kwargs):
            call, decided = planned_call(self.decision, args, kwargs), as_decided(self.decision, fun)
            if self.decision.emit == "plain":
                return decided(*args, **kwargs)
            primal = self._read(call.bind(decided), call.arrays)
            return apply_flat(primal, emit(primal, self.decision), call.arrays)

        return planned

    @property
    def policy(self) -> Callable:
        """What to save, for `jax.checkpoint` and its likes; use it together with `named`, or around the author's names.

        Raises:
          EmissionError: if the plan is not one of names.
        """
        self._require_names()
        plain = self.decision.emit == "plain"
        return jax.checkpoint_policies.everything_saveable if plain else NamePolicy(self.decision.names)

    def policy_text(self) -> str:
        """The policy as it is written by hand: `save_only_these_names("query_proj", "context")`."""
        return "everything_saveable" if self.decision.emit == "plain" else str(self.policy)

    def named(self, fun: Callable) -> Callable:
        """`fun` with the plan's names on its values, for `jax.checkpoint(plan.named(fun), policy=plan.policy)`.

        Raises:
          EmissionError: if the plan is not one of names.
        """
        require_function(fun)
        self._require_names()

        @functools.wraps(fun)
        def named(*args, **kwargs):
            call, decided = planned_call(self.decision, args, kwargs), as_decided(self.decision, fun)
            if self.decision.emit == "plain" or self.decision.extra.get("own"):
                return decided(*args, **kwargs)
            primal = self._read(call.bind(decided), call.arrays)
            return apply_flat(primal, emit_named(primal, self.decision), call.arrays)

        return named

    def _read(self, fun: Callable, arrays: Sequence) -> Primal:
        """The program of a function, which has to be the planned one."""
        primal = read_primal(fun, arrays, self.decision.argnums, self.decision.has_aux)
        check_program(self.decision, primal, self.problem.primal)
        return primal

    def _require_names(self) -> None:
        if self.decision.emit not in ("names", "plain"):
            raise EmissionError(
                f"this plan is in the form {self.decision.emit!r}, which has no policy; plan with emit='names' for one"
            )

    @functools.cached_property
    def baseline_problem(self) -> Problem:
        """The same program with its loops left alone."""
        return pose(self.problem.primal, resolve_target(self.target)) if self.problem.loops else self.problem

    @functools.cached_property
    def baseline_timeline(self) -> Timeline:
        """The predicted timeline of the same program without recomputation."""
        plain = self.baseline_problem
        return predict(plain.joint, plain.graph, plain.in_order, resolve_target(self.target))

    @property
    def saved(self) -> tuple[Value, ...]:
        """What is kept from the forward to the backward: one record per value, in the order of the program."""
        return tuple(value for value in self._values if value.saved)

    @property
    def recomputed(self) -> tuple[Value, ...]:
        """What the backward reads and computes again."""
        return tuple(value for value in self._values if value.action == "recompute")

    @functools.cached_property
    def report(self) -> Report:
        """All that there is to say about the plan, as data."""
        return report_of(self.numbers, self._written, self._planned)

    @property
    def numbers(self) -> Numbers:
        """The headline's numbers."""
        return Numbers.of(self, self.decision.emit)

    def summary(self) -> dict[str, Any]:
        """The plan's numbers as plain values, for experiment trackers and JSON."""
        return self.numbers.summary()

    def table(self) -> Any:
        """What becomes of every value that the backward reads: a pandas frame where pandas is installed, else dicts."""
        return as_frame(records_of(self._values))

    def explain(self, pattern: str | None = None, *, when: bool = False) -> str:
        """Why values are saved or not, what they hold, and what recomputing them costs or would cost.

        Args:
          pattern: a part of a module path (`block_3/attention`), of a name given with `checkpoint_name`, of an
            operation, or of a source line; None for everything.
          when: whether to find the budget at which that changes for the largest of them; this plans a few times more.

        Raises:
          ArgumentError: if nothing matches; the message lists paths that exist.
        """
        seconds = self.baseline_timeline.cost
        lines = explanation_lines(explain(self._decided, pattern, self.report.table, seconds))
        if when:
            lines.append(self._turning_point(pattern))
        return "\n".join(lines)

    def show(self, file: str | Path | None = None) -> None:
        """Displays the plan: in a notebook as `plan` does, in a terminal as text, or into an HTML file.

        Args:
          file: where to write a page that needs nothing else; None to display.
        """
        show(self.report, file)

    def save(self, path: str | Path) -> None:
        """Writes the plan as JSON; `jaxremat.load_plan` reads it back where the function is at hand."""
        write_plan(path, self, self._values)

    def check_grads(self, *args, rtol: float | None = None, **kwargs) -> GradientCheck:
        """Runs the planned gradient against the plain one.

        Args:
          args, kwargs: concrete arrays of the planned shapes, in trees.
          rtol: the largest relative difference allowed; None follows the narrowest floating type in the program.

        Returns:
          The largest difference that was found, and where.

        Raises:
          GradientError: if it is larger than allowed, or a result or a gradient is not a number.
          PlanMismatchError: for arguments of other shapes.
        """
        call = planned_call(self.decision, args, kwargs)
        return check_gradients(self.problem.joint, self.decision, call.arrays, rtol)

    def __str__(self) -> str:
        return to_text(self.report)

    def __repr__(self) -> str:
        budget, peak = format_bytes(self.budget_bytes), format_bytes(self.peak_bytes)
        return f"<Plan for {budget} on {self.target}: predicted {peak}, extra time {self.overhead:.1%}>"

    def __rich__(self) -> Any:
        return to_rich(self.report, terminal_width())

    def _repr_html_(self) -> str:
        return to_html(self.report)

    @functools.cached_property
    def _planned(self) -> Version:
        decision = self.decision
        scheduled = schedule_program(
            self.problem.graph, self.schedule, backward_start=decision.start, barriers=decision.fences
        )
        return Version(self.problem, scheduled, self.timeline, resolve_target(self.target))

    @functools.cached_property
    def _written(self) -> Version:
        plain = self.baseline_problem
        return Version(plain, in_order(plain.graph), self.baseline_timeline, resolve_target(self.target))

    @functools.cached_property
    def _decided(self) -> dict[Part, dict[int, Value]]:
        return decided(self._planned)

    @property
    def _values(self) -> tuple[Value, ...]:
        return tuple(value for values in self._decided.values() for value in values.values())

    def _turning_point(self, pattern: str | None) -> str:
        """The budget at which the largest value that a pattern matches changes its mind."""
        if self.problem.loops:
            return "values inside of loops are decided with their loops, not one by one"
        graph, here = self.problem.graph, replay(self.problem.graph, self.schedule).peak_bytes
        plain = replay(graph, self.problem.in_order).peak_bytes
        offset = self.peak_bytes - here
        probes = track(range(MOST_PROBES), "planning for other budgets")

        def span(saved: bool) -> tuple[int, int]:
            return here + offset, (graph.resident_bytes if saved else plain) + offset

        def saves_at(budget_bytes: int, value: int) -> bool:
            next(probes, None)
            outcome = self._planner.fit(budget_bytes - offset)
            scheduled = schedule_program(outcome.problem.graph, outcome.schedule, backward_start=outcome.start)
            return bool(np.isin(value, scheduled.saved))

        found = turning_budget(matching(self._decided, pattern), self.baseline_timeline.cost, span, saves_at)
        return turning_sentence(found, self.peak_bytes)

    @functools.cached_property
    def _planner(self) -> Planner:
        return Planner(self.problem.primal, resolve_target(self.target))


def require_function(fun: Any) -> None:
    """Raises ArgumentError for what cannot be called."""
    if not callable(fun):
        raise ArgumentError(
            f"the first argument has to be a function, not {type(fun).__name__}: the loss, not its data"
        )


def as_decided(decision: Decision, fun: Callable) -> Callable:
    """The function that was planned: `fun`, or `fun` with its attention in chunks."""
    return attention.rewrite(fun, target=decision.target) if decision.extra.get(CHUNKED) else fun


def apply_flat(primal: Primal, flat: Callable[..., list], args: Sequence) -> Any:
    """Calls a flat emitted function on tree arguments."""
    return jax.tree.unflatten(primal.out_tree, flat(*primal.captured, *jax.tree.leaves(args)))


def signature_of(args: Sequence) -> tuple[str, ...]:
    """Shape and dtype of every leaf, with its path: `0/params/w float32[8,8]`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tuple(args))
    return tuple(f"{jax.tree_util.keystr(path, simple=True, separator='/')} {_describe(leaf)}" for path, leaf in leaves)


def planned_call(decision: Decision, args: Sequence, kwargs: Mapping) -> Call:
    """The call of a planned function, whose arrays are as they were planned.

    Raises:
      PlanMismatchError: where they differ in number, shape or dtype.
    """
    calls = [call_of(args, kwargs, decision.argnums, numbers) for numbers in (True, False)]
    fitting = [call for call in calls if signature_of(call.arrays) == decision.signature]
    return fitting[0] if fitting else _refuse_call(decision, signature_of(calls[0].arrays))


def _refuse_call(decision: Decision, given: Sequence[str]) -> NoReturn:
    differences = [f"planned {a}, given {b}" for a, b in zip(decision.signature, given) if a != b]
    if len(given) != len(decision.signature):
        differences.append(f"planned {len(decision.signature)} arrays, given {len(given)}")
    raise PlanMismatchError(
        f"the arguments differ from the planned ones in {len(differences)} places: {'; '.join(differences[:4])}."
        " Plan again for these shapes, or use @jaxremat.remat, which plans once per signature. A number or a flag that"
        " was static in the plan is to be one here, too: under jax.jit, with static_argnums."
    )


def check_program(decision: Decision, primal: Primal, planned: Primal | None = None) -> None:
    """Raises PlanMismatchError where a function traces to another program than the planned one."""
    if primal.fingerprint == decision.fingerprint:
        return
    detail = ""
    if planned is not None:
        ours, theirs = describe(planned.jaxpr), describe(primal.jaxpr)
        first = next((i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b), min(len(ours), len(theirs)))
        line = theirs[first][:200] if first < len(theirs) else "the end"
        detail = f" They part at line {first} of {len(ours)} (planned) and {len(theirs)} (given): {line}."
    raise PlanMismatchError(
        f"the function traces to another program than the one that was planned.{detail} Plan again."
    )


def _describe(leaf) -> str:
    aval = leaf if isinstance(leaf, jax.ShapeDtypeStruct) else jax.typeof(leaf)
    return f"{aval.dtype}[{','.join(map(str, aval.shape))}]"
