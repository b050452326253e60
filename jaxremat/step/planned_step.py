"""A step that is planned for each signature when it is first called, lowered or asked for its plan."""

from __future__ import annotations

import dataclasses
import functools
import logging
import threading
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from jaxremat.base import compat
from jaxremat.base.budget import format_bytes
from jaxremat.base.collecting import collected_seldom
from jaxremat.base.errors import ArgumentError
from jaxremat.compiled.compile import MemoryReport, compile_jitted
from jaxremat.planning.plan_cache import remembered
from jaxremat.planning.request import host_budget_bytes
from jaxremat.step.arguments import KeyPath, Placement, StepArguments, StepCall
from jaxremat.step.hosting import telling_of_host_memory, with_state_on_host
from jaxremat.step.load import kept_for, restored_plan
from jaxremat.step.narrow import NarrowStepPlanner
from jaxremat.step.options import StepOptions
from jaxremat.step.plan import StepPlan
from jaxremat.step.planner import ProgramPlanner, search_by, step_planner
from jaxremat.step.planning import Compile, StepPlanner, StepPlanning
from jaxremat.step.program import StepProgram, trace_step
from jaxremat.step.slicing import plan_in_slices
from jaxremat.step.storage import parse_step_plan
from jaxremat.step.transfers import HostPlanner
from jaxremat.trace.arguments import is_traced_by_jit, may_hold_static_numbers, opaque
from jaxremat.trace.round_trips import permitted

logger = logging.getLogger("jaxremat")


class PlannedStep:
    """A step that is planned when it is traced; called like the result of `jax.jit`."""

    def __init__(
        self,
        fun: Callable[..., Any],
        options: StepOptions,
        arguments: StepArguments,
        given: Mapping[Any, Any],
        shardings: Mapping[Any, Any],
    ) -> None:
        functools.update_wrapper(self, fun)
        self._fun = fun
        self._options = options
        self._arguments = arguments
        self._given = dict(given)
        self._shardings = dict(shardings)
        self._lock = threading.RLock()
        self._programs: dict[tuple[Any, ...], StepProgram] = {}
        self._planners: dict[tuple[Any, ...], StepPlanner] = {}
        self._plans: dict[tuple[Any, ...], StepPlan] = {}
        self._jitted: dict[tuple[Any, ...], Any] = {}
        self._compilations = 0
        self._unsharded = self._planned(())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not may_hold_static_numbers((args, kwargs)):
            try:
                return self._for(args, kwargs)(*args, **kwargs)
            except TypeError:
                if all(map(is_traced_by_jit, jax.tree.leaves((args, kwargs)))):
                    raise
        args, kwargs = self._arguments.opaque(args, kwargs)
        return self._for(args, kwargs)(*args, **kwargs)

    def with_paths(self, paths_of: Callable[[Any], Sequence[KeyPath]]) -> PlannedStep:
        """The same step, of whose arguments is told by other paths."""
        arguments = StepArguments(self._fun, self._options.is_host_memory, **self._given, paths_of=paths_of)
        return PlannedStep(self._fun, self._options, arguments, self._given, self._shardings)

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else types.MethodType(self, instance)

    def lower(self, *args: Any, **kwargs: Any) -> Any:
        """As of `jax.jit`: the planned step, lowered for some arguments."""
        return self.trace(*args, **kwargs).lower()

    def trace(self, *args: Any, **kwargs: Any) -> Any:
        """As of `jax.jit`: the planned step, traced for some arguments."""
        self._arguments.call(args, kwargs)
        args, kwargs = self._arguments.opaque(args, kwargs)
        return self._for(args, kwargs).trace(*args, **kwargs)

    def eval_shape(self, *args: Any, **kwargs: Any) -> Any:
        """Shapes of the results; nothing is planned."""
        call = self._call(args, kwargs)
        return jax.eval_shape(lambda *values: opaque(call.result(self._step(call)(*values))), *call.shapes)

    def clear_cache(self) -> None:
        """Forgets plans and compiled programs."""
        with self._lock:
            self._programs.clear()
            self._planners.clear()
            self._plans.clear()
            self._jitted.clear()
            self._unsharded = self._planned(())

    def plan(self, *args: Any, **kwargs: Any) -> StepPlan:
        """The plan for some arguments: arrays or ShapeDtypeStructs, in trees. It is made once per signature.

        Raises:
          BudgetError: if nothing that was found fits; it carries the smallest peak and who holds it.
        """
        return self._plan(self._call(args, kwargs))

    def attempt(self, most_trials: int | None, *args: Any, **kwargs: Any) -> StepPlan:
        """As `plan`, but it is refused after so many compilations of planned steps that do not fit; None: as `plan`."""
        return self._plan(self._call(args, kwargs), most_trials)

    @property
    def compilations(self) -> int:
        """How many steps were compiled so far, for all plans."""
        return self._compilations

    def predicted(self, *args: Any, **kwargs: Any) -> StepPlan:
        """The plan by prediction alone; nothing is compiled.

        Raises:
          BudgetError: if nothing that was found is predicted to fit.
        """
        return self._planned_by(self._planning(self._call(args, kwargs), None))

    def predicted_bytes(self, *args: Any, **kwargs: Any) -> int:
        """The predicted peak of the step as written; nothing is searched or compiled."""
        return self._planner(self._call(args, kwargs)).plain.peak_bytes

    def load_plan(self, path: str | Path, *args: Any, **kwargs: Any) -> StepPlan:
        """Reads a plan that `StepPlan.save` wrote, and uses it for arguments of this signature. Nothing is solved.

        Raises:
          PlanMismatchError: if the file is damaged, or the step or its arguments have changed; with the difference.
        """
        call = self._call(args, kwargs)
        plan = restored_plan(parse_step_plan(Path(path).read_text(), path), self._traced(call))
        with self._lock:
            self._plans[self._key(call)] = plan
        return plan

    def _for(self, args: Sequence[Any], kwargs: Mapping[Any, Any]) -> Any:
        """The jitted function for how the arguments lie on a mesh: `jax.jit` itself traces once for all of these."""
        if _has_one_device() and "offload" not in self._options.allow:
            return self._unsharded
        placements = tuple(map(self._arguments.placement, jax.tree.leaves((args, kwargs))))
        if not any(placements):
            return self._unsharded
        with self._lock:
            if placements not in self._jitted:
                self._jitted[placements] = self._planned(placements)
            return self._jitted[placements]

    def _planned(self, placements: tuple[Placement, ...]) -> Any:
        """`jax.jit` of the step, planned where it is traced."""

        def planned(*args: Any, **kwargs: Any) -> Any:
            call = self._call(args, kwargs, placements)
            if not self._program(call).jaxpr.eqns or (plan := self._plan(call)).is_plain:
                return opaque(call.completed(self._step(call)(*call.values)))
            captured = self._traced(call).captured if plan.program.captured else ()
            results = plan.run([*captured, *call.values])
            return opaque(call.completed(jax.tree.unflatten(plan.program.out_tree, results)))

        return self._plainly(functools.wraps(self._fun)(planned))

    def _plainly(self, fun: Callable[..., Any]) -> Any:
        """`jax.jit` of a function with this step's options. What is empty is left out: names follow from numbers, and
        numbers from names, only where the others are not given."""
        given = {name: value for name, value in self._given.items() if value is not None and value != ()}
        return jax.jit(fun, **given, **self._shardings)

    def _step(self, call: StepCall) -> Callable[..., Any]:
        """The step as a function of the leaves of a call."""
        return with_state_on_host(self._fun, call) if "offload" in self._options.allow else call.bind(self._fun)

    def _call(self, args: Sequence[Any], kwargs: Mapping[Any, Any], placements: tuple[Placement, ...] = ()) -> StepCall:
        call = self._arguments.call(args, kwargs)
        if any(placements):
            leaves = jax.tree.leaves(self._arguments.opaque(args, kwargs))
            of_leaf = dict(zip(map(id, leaves), placements, strict=True))
            call = dataclasses.replace(call, placements=tuple(of_leaf[id(leaf)] for leaf in call.leaves))
        call = self._placed(call)
        call.require_pinned()
        return call

    def _placed(self, call: StepCall) -> StepCall:
        """The call with the shardings that were asked for by `in_shardings`."""
        if "in_shardings" not in self._shardings:
            return call
        args, _ = call.rebuild(range(len(call.leaves)))
        asked = jax.tree.broadcast(self._shardings["in_shardings"], args, is_leaf=lambda x: x is None)
        order = jax.tree.leaves(args)
        found = dict(zip(order, jax.tree.leaves(asked, is_leaf=lambda x: x is None), strict=True))
        is_host_memory = self._options.is_host_memory
        placements = tuple(Placement.by(found.get(k), is_host_memory) or own for k, own in enumerate(call.placements))
        return dataclasses.replace(call, placements=placements)

    def _key(self, call: StepCall) -> tuple[Any, ...]:
        return *call.key, compat.trace_context()

    def _plan(self, call: StepCall, most_trials: int | None = None) -> StepPlan:
        with self._lock:
            key = self._key(call)
            if key not in self._plans:
                self._plans[key] = self._made(call, most_trials)
                name = getattr(self._fun, "__name__", "step")
                logger.info("%s: %s", name, _told(self._plans[key]))
                for warning in self._plans[key].warnings:
                    logger.warning("%s: %s", name, warning)
            return self._plans[key]

    def _program(self, call: StepCall) -> StepProgram:
        """The step as it was traced first for such a call."""
        with self._lock:
            key = self._key(call)
            if key not in self._programs:
                self._programs[key] = self._traced(call)
            return self._programs[key]

    @collected_seldom()
    def _made(self, call: StepCall, most_trials: int | None) -> StepPlan:
        program = self._program(call)
        if not program.jaxpr.eqns:
            raise ArgumentError("this step computes nothing: its results are its arguments; there is nothing to plan")
        compile = functools.partial(self._compiled, call, program) if program.stands_alone else None
        question = *self._options.question, *program.question, most_trials, sorted(self._shardings.items())
        try:
            make = lambda: self._planned_by(self._planning(call, compile, most_trials))
            return remembered(question, self._options.solver, self._options.device, kept_for(program), make)
        finally:
            self._planners.pop(self._key(call), None)

    def _planned_by(self, planning: StepPlanning) -> StepPlan:
        """The plan; over a mesh, whose devices hold slices already, nothing is cut."""
        budget = self._options.budget
        if "chunk" in self._options.allow and not any(planning.program.shardings):
            return plan_in_slices(planning, self._planner_for, budget)
        return planning.plan(budget)

    def _planning(self, call: StepCall, compile: Compile | None, most_trials: int | None = None) -> StepPlanning:
        options = self._options
        return StepPlanning(
            self._program(call),
            self._planner(call),
            options.device,
            compile,
            options.solver.name,
            verifies=options.verify == "compile",
            most_trials=most_trials,
        )

    def _planner(self, call: StepCall) -> StepPlanner:
        """What proposes, kept from a prediction to the plan of the same call."""
        key = self._key(call)
        if key not in self._planners:
            self._planners[key] = self._planner_for(self._program(call))
        return self._planners[key]

    def _planner_for(self, program: StepProgram) -> StepPlanner:
        options = self._options
        search_for = search_by(options.solver, options.seed)
        planner = functools.partial(step_planner, program, options.device, search_for=search_for)
        if "offload" in options.allow:
            most_bytes = host_budget_bytes(options.host_budget, options.allow)
            exact: ProgramPlanner | HostPlanner = HostPlanner(program, options.device, search_for, most_bytes)
        else:
            exact = planner()
        forms = permitted(options.allow)
        return NarrowStepPlanner(exact, lambda storages: planner(storages=storages), forms) if forms else exact

    def _traced(self, call: StepCall) -> StepProgram:
        with telling_of_host_memory(call):
            return trace_step(self._step(call), call.avals, call.names, call.donated, call.shardings)

    def _compiled(
        self, call: StepCall, program: StepProgram, run: Callable[[Sequence[Any]], list[Any]]
    ) -> MemoryReport:
        """Compiles the step as it is called, run in some way from its flat inputs; under its own name, by which a
        compilation cache on disk finds it again."""

        @functools.wraps(self._fun)
        def as_called(*args: Any, **kwargs: Any) -> Any:
            traced = self._arguments.call(args, kwargs)
            return opaque(traced.completed(jax.tree.unflatten(program.out_tree, run(traced.values))))

        args, kwargs = self._arguments.opaque(*call.rebuild(call.abstract))
        self._compilations += 1
        return compile_jitted(self._plainly(as_called), args, kwargs, self._options.device.name).report


def _told(plan: StepPlan) -> str:
    written = format_bytes(plan.baseline_peak_bytes)
    if plan.is_plain:
        return f"fits as it is written: {written} within {format_bytes(plan.budget_bytes)}"
    peak = plan.compiled.peak_bytes if plan.compiled else plan.peak_bytes
    return (
        f"planned for {format_bytes(plan.budget_bytes)} on {plan.target}: {format_bytes(peak)} of {written},"
        f" {plan.overhead:+.1%} time, in {plan.solve_seconds:.1f} s"
    )


@functools.cache
def _has_one_device() -> bool:
    return jax.device_count() == 1
