"""`jaxremat.jit`: `jax.jit` for a whole step, with a budget."""

from __future__ import annotations

import dataclasses
import functools
import logging
import threading
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from jaxremat.backends.devices import Device, resolve_target
from jaxremat.base import compat
from jaxremat.base.budget import Budget, format_bytes, parse_budget
from jaxremat.base.collecting import collected_seldom
from jaxremat.base.errors import ArgumentError
from jaxremat.compiled.compile import MemoryReport, compile_jitted
from jaxremat.planner.solver_schedules import require_graphs
from jaxremat.planning.request import VERIFICATIONS, host_budget_bytes, permissions, require_one_of
from jaxremat.solvers.base import Solver
from jaxremat.solvers.registry import solver_named
from jaxremat.step.arguments import Placement, StepArguments, StepCall
from jaxremat.step.hosting import telling_of_host_memory, with_state_on_host
from jaxremat.step.plan import StepPlan
from jaxremat.step.planner import restored_step, search_by, step_planner
from jaxremat.step.planning import Compile, StepPlanner, StepPlanning
from jaxremat.step.program import StepProgram, trace_step
from jaxremat.step.slicing import plan_in_slices, sliced
from jaxremat.step.storage import check_program, read_step_plan
from jaxremat.step.transfers import HostPlanner
from jaxremat.trace.arguments import is_traced_by_jit, opaque

logger = logging.getLogger("jaxremat")

_OF_A_LOSS = {
    "narrow": "what may be rounded is told by what waits for a backward, and a step has no backward of its own",
}


@dataclasses.dataclass(frozen=True)
class StepOptions:
    """What `jaxremat.jit` was asked for, the function and its arguments aside; checked.

    Raises:
      ArgumentError: for an option that cannot be understood.
    """

    budget: Budget
    target: str | None
    solver: Solver
    verify: str
    allow: frozenset[str]
    host_budget: int | str | None
    seed: int

    def __post_init__(self) -> None:
        parse_budget(self.budget)
        require_one_of("verify", self.verify, VERIFICATIONS)
        require_graphs(self.solver)
        host_budget_bytes(self.host_budget, self.allow)
        for permission in sorted(self.allow & _OF_A_LOSS.keys()):
            raise ArgumentError(
                f"allow={permission!r} does not hold for whole steps: {_OF_A_LOSS[permission]}. Give it to"
                " jaxremat.plan of the loss, and differentiate plan.apply(loss) inside the step"
            )

    @functools.cached_property
    def device(self) -> Device:
        return resolve_target(self.target)

    def is_host_memory(self, kind: str | None) -> bool:
        """Whether a kind of memory is the host's, seen from the target."""
        return kind is not None and self.device.is_host_memory(kind)


def jit(
    fun: Callable[..., Any] | None = None,
    *,
    budget: Budget,
    donate_argnums: int | Sequence[int] = (),
    donate_argnames: str | Iterable[str] = (),
    static_argnums: int | Sequence[int] = (),
    static_argnames: str | Iterable[str] = (),
    in_shardings: Any = None,
    out_shardings: Any = None,
    target: str | None = None,
    solver: str | Solver | type[Solver] = "auto",
    verify: str = "compile",
    allow: Iterable[str] = (),
    host_budget: int | str | None = None,
    seed: int = 0,
) -> Any:
    """`jax.jit` for a whole step whose compiled program fits in a number of bytes.

    Any function will do: a training step with its gradients, optimizer and averages, a step with several gradients or
    with loops around them, an evaluation. It is traced and planned once per signature, when it is first called or
    lowered. Where it fits as it is written, it is left alone. Under another trace (`jit`, `grad`, `vmap`) it is the
    planned program.

    Args:
      fun: the step; without it, `jit(budget=...)` is a decorator. Leaves of its arguments and results that are neither
        arrays nor numbers, such as the functions in a module of Equinox, are static.
      budget: bytes (int), text such as "12GiB", a fraction in (0, 1] of the step's own compiled peak, "least", the
        smallest peak that is found, or "device", what the device's allocator gives less 2 % for fragmentation and the
        runtime. It bounds argument + output + temporary - alias bytes of the compiled step on one device.
      donate_argnums, donate_argnames, static_argnums, static_argnames, in_shardings, out_shardings: as in `jax.jit`.
      target: device to plan for, such as "h200"; None is the default backend's.
      solver: name, class or instance of a solver of graphs; "auto" is the default search.
      verify: "compile" compiles and corrects until the step fits; "replay" trusts the prediction, and hears the
        compiler only before it refuses.
      allow: "offload" lets what a scan stacks for its gradient wait in the host's memory, where the target has a link
        to one. Arguments that lie there (memory kind "pinned_host" or "unpinned_host"), such as the moments of an
        optimizer, are brought to the device leaf by leaf, each where it is read, and what takes their place goes back,
        pinned: the result of the same shape and dtype whose path ends alike. What lies on the device is never moved
        there. "chunk" lets large values (logits, scores, hidden values), or all that a batch leaves, be computed
        slice by slice, forward and backward: the same values up to the order of sums; not over a mesh. "narrow" belongs
        to the loss: give it to `jaxremat.plan` of it, and differentiate `plan.apply(loss)` inside the step.
      host_budget: the most of the host's memory that the step may take for one device, in bytes or text: arguments and
        results that lie there, and what waits there; any amount by default.
      seed: for solvers that draw random numbers; the default search draws none.

    Returns:
      What is called like the result of `jax.jit`, with its `lower`, `trace` and `eval_shape`; and `plan(*args)`, which
      returns a `StepPlan`.

    Raises:
      ArgumentError: for an option or an argument that cannot be understood.
      BudgetError: when it is called, lowered or planned, and nothing that was found fits.
    """
    options = StepOptions(budget, target, solver_named(solver), verify, permissions(allow), host_budget, seed)
    given: dict[str, Any] = {
        "donate_argnums": donate_argnums, "donate_argnames": donate_argnames,
        "static_argnums": static_argnums, "static_argnames": static_argnames,
    }  # fmt: skip
    if fun is None:
        return functools.partial(
            jit, budget=budget, in_shardings=in_shardings, out_shardings=out_shardings, target=target, solver=solver,
            verify=verify, allow=allow, host_budget=host_budget, seed=seed, **given,
        )  # fmt: skip
    shardings = {"in_shardings": in_shardings, "out_shardings": out_shardings}
    shardings = {name: value for name, value in shardings.items() if value is not None}
    return PlannedStep(fun, options, StepArguments(fun, options.is_host_memory, **given), given, shardings)


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
        try:
            return self._for(args, kwargs)(*args, **kwargs)
        except TypeError:
            if all(map(is_traced_by_jit, jax.tree.leaves((args, kwargs)))):
                raise
        args, kwargs = self._arguments.opaque(args, kwargs)
        return self._for(args, kwargs)(*args, **kwargs)

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
        return jax.eval_shape(lambda *leaves: opaque(self._step(call)(*leaves)), *call.shapes)

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
        stored = read_step_plan(path)
        program = self._traced(call)
        check_program(stored, program)
        program = sliced(program, stored.chunks)
        device = resolve_target(stored.numbers["target"])
        outcome = restored_step(program, stored.decision, device)
        numbers = {name: value for name, value in stored.numbers.items() if name != "target"}
        plan = StepPlan(
            program,
            outcome,
            step_planner(program.written or program, device).plain,
            compiled=stored.compiled,
            **numbers,
        )
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
                return opaque(self._step(call)(*call.leaves))
            captured = self._traced(call).captured if plan.program.captured else ()
            return opaque(jax.tree.unflatten(plan.program.out_tree, plan.run([*captured, *call.leaves])))

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
        compile = None if program.captured else functools.partial(self._compiled, call, program)
        try:
            return self._planned_by(self._planning(call, compile, most_trials))
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
        if "offload" not in options.allow:
            return step_planner(program, options.device, search_for=search_for)
        most_bytes = host_budget_bytes(options.host_budget, options.allow)
        return HostPlanner(program, options.device, search_for, most_bytes)

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
            return opaque(jax.tree.unflatten(program.out_tree, run(self._arguments.call(args, kwargs).leaves)))

        args, kwargs = self._arguments.opaque(*call.rebuild(call.shapes))
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
