"""The decorator: a function that plans its own gradient where it is differentiated."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax

from jaxremat.backends.devices import resolve_target
from jaxremat.base import compat
from jaxremat.base.budget import Budget, format_bytes, keep_bytes
from jaxremat.base.compat import Literal, Var
from jaxremat.base.errors import ArgumentError, TargetError, UnplannableError
from jaxremat.emit.scheduled import emit_scheduled
from jaxremat.emit.script import Script
from jaxremat.planner.decision import Decision
from jaxremat.planning.entry import plan_for
from jaxremat.planning.memory import PLANS, Memory
from jaxremat.planning.placement import devices_of_mesh, per_argument
from jaxremat.planning.plan import Plan
from jaxremat.planning.request import Request, check_options, checked_request, require_function
from jaxremat.planning.static_arguments import Fixed, StaticArguments, static_arguments
from jaxremat.planning.traced_call import calls_of, first_that_traces
from jaxremat.trace import jaxpr as jaxprs
from jaxremat.trace.activity import has_reverse_mode
from jaxremat.trace.fingerprint import fingerprint
from jaxremat.trace.joint import Joint, differentiate
from jaxremat.trace.nnx_state import carrying_state, holds_modules, with_owner_as_argument
from jaxremat.trace.primal import Primal

logger = logging.getLogger("jaxremat")

_MOST_TRACES = 64  # programs of one function that are remembered; more shapes than that hardly come back


def remat(
    fun: Callable[..., Any] | None = None,
    *,
    budget: Budget | None = None,
    keep: Budget | None = None,
    has_aux: bool = False,
    static_argnums: int | Sequence[int] = (),
    static_argnames: str | Iterable[str] = (),
    in_shardings: Any = None,
    solver: str = "auto",
    target: str | None = None,
    emit: str = "schedule",
    verify: str | None = None,
    seed: int = 0,
) -> Callable[..., Any]:
    """The same function, whose gradient is planned for a budget where it is first differentiated.

    A plan is made once per program, argument shapes and set of differentiated arguments: equal functions share it. It
    is told at INFO on the logger "jaxremat". What the function closes over is differentiated too. Under `vmap` and
    `scan` the inner function is planned. Arrays among the arguments are traced, everything else is static. Modules of
    Flax NNX among them keep what the function changes in them.

    Args:
      fun: any JAX function; without it, `remat(budget=...)` is a decorator.
      budget: as in `jaxremat.plan`; a fraction is of this function's own gradient program.
      keep: instead of a budget, what the function may leave behind for its backward beside its inputs: bytes, text, or
        a fraction of what its backward reads. 0 is full rematerialization, as of `jax.checkpoint`.
      has_aux: whether the function returns (result, auxiliary data), of which only the result is differentiated.
      static_argnums, static_argnames: arguments to leave untraced whatever they are, as in `jax.jit`.
      in_shardings: where the arguments are, as in `jax.jit`: the budget is one device's share. Nothing is moved. Not
        needed where the arrays say it themselves: outside `jit`, and on meshes of explicit axes.
      solver, target, seed: as in `jaxremat.plan`.
      verify: "compile" or "replay", as in `jaxremat.plan`. By default predictions are trusted, except where arguments
        lie on a mesh: what a device holds there is decided by the compiler, and planning compiles.
      emit: "schedule"; or "segments", which also works in forward mode and is planned for every floating argument.

    Returns:
      The function, to be called, transformed and differentiated as before; without `fun`, a decorator.

    Raises:
      ArgumentError: for an option that cannot be understood, and for static arguments that the function does not have.
      EmissionError: for a function that changes a module it closes over, and in forward mode.
      BudgetError: when a loss is differentiated and nothing that was found fits. A function that returns anything but
        one number is a block of a larger program: it takes the least, as in `jaxremat.linen.remat`, with a warning.
    """
    options: dict[str, Any] = {"solver": solver, "target": target, "emit": emit, "verify": verify, "seed": seed}
    static: dict[str, Any] = {"static_argnums": static_argnums, "static_argnames": static_argnames}
    if fun is None:
        return functools.partial(
            remat, budget=budget, keep=keep, has_aux=has_aux, in_shardings=in_shardings, **static, **options
        )
    require_function(fun)
    name = getattr(fun, "__name__", type(fun).__name__)
    once = PlanOnce(name, budget=budget, keep=keep, **options)
    return decorated(fun, once, static_arguments(fun, **static), has_aux, in_shardings)


def decorated(
    fun: Callable[..., Any], once: PlanOnce, static: StaticArguments, has_aux: bool = False, in_shardings: Any = None
) -> Callable[..., Any]:
    """A function planned where it is differentiated; modules of Flax NNX among its arguments keep what it changes."""
    free, owner = with_owner_as_argument(fun)
    of_arrays = once.decorate(free, has_aux)
    of_modules = functools.cache(lambda: carrying_state(free, lambda pure: once.decorate(pure, has_aux), has_aux))

    @functools.wraps(fun)
    def planned(*args: Any, **kwargs: Any) -> Any:
        fixed, kwargs = static.fix(args, kwargs)
        args = (*owner, *fixed)
        placed = per_argument(in_shardings, args, lambda arg: isinstance(arg, Fixed)), None
        if holds_modules((args, kwargs)):
            return of_modules()(placed, *args, **kwargs)
        return of_arrays(placed, *args, **kwargs)

    return planned


class PlanOnce:
    """One plan per program, wherever the program comes from.

    Args:
      name: for the log.
      least: whether a budget below the least that is reached takes the least, with a warning.
      options: `budget` or `keep`, `solver`, `target`, `emit`, `verify` and `seed`, as of `remat`.

    Raises:
      ArgumentError: for an option that cannot be understood.
    """

    def __init__(
        self, name: str, *, budget: Budget | None = None, keep: Budget | None = None, least: bool = False,
        solver: Any="auto", target: Any=None, emit: Any="schedule", verify: Any=None, seed: Any=0,
    ) -> None:  # fmt: skip
        if (budget is None) == (keep is None):
            raise ArgumentError(f"give either budget=... or keep=..., not {'both' if keep is not None else 'neither'}")
        check_options(1.0 if budget is None else budget, solver=solver, emit=emit, verify=verify or "replay")
        if keep is not None:
            keep_bytes(keep, 0)
        self.name = name
        self.emit = emit
        self.least = least
        self.bounds = {"budget": budget, "keep": keep}
        self.options = {"solver": solver, "target": target, "emit": emit, "verify": verify, "seed": seed}

    def decorate(self, fun: Callable[..., Any], has_aux: bool = False) -> Callable[..., Any]:
        """The same function, planned where it is differentiated.

        Returns:
          A function of (placed, *args, **kwargs): arguments may be `Fixed`, and `placed` is a prefix of their tree
          (args, kwargs) that says where they are.
        """
        traces: Memory[_Traced] = Memory(_MOST_TRACES)

        @functools.wraps(fun)
        def planned(placed: Any, /, *args: Any, **kwargs: Any) -> Any:
            calls = calls_of(fun, args, kwargs, placed)
            for call in calls:
                if known := traces.known(call.key):
                    return known(call.arrays)
            try:
                call, primal = first_that_traces(calls, has_aux)
            except UnplannableError as error:
                logger.warning("%s stays as it is: %s", self.name, error)
                return calls[-1].of_arrays(*calls[-1].arrays)
            traced = _Traced(primal, _forwarding(primal, self._emitted))
            key = call.key  # asked for after tracing, which may change what the function closes over
            if key and call.holds_all(primal):
                traces.remember(key, traced)
            return traced(call.arrays)

        return planned

    def _decision(self, primal: Primal) -> Decision:
        """What to do for a primal program, whose `wrt` says what is differentiated."""
        program = fingerprint(differentiate(primal).jaxpr, f"{primal.wrt} {primal.cotangents_of} {primal.shardings}")
        target = resolve_target(self.options["target"]).name
        mesh = jax.sharding.get_abstract_mesh()  # it is written into the bodies of loops
        key = program, mesh, target, self.least, *self.bounds.items(), *self.options.items()
        return PLANS.get(key, lambda: self._decide(primal))

    def _decide(self, primal: Primal) -> Decision:
        last = max(primal.cotangents_of) + 1

        def flat(*inputs: Any) -> Any:
            outputs = jaxprs.evaluate(primal.jaxpr, inputs)
            return (outputs[0] if last == 1 else outputs[:last]), outputs[last:]

        self._warn_of_mesh(primal)
        options = {**self.options, "verify": self.options["verify"] or _verification(primal)}
        request = checked_request(flat, tuple(primal.inputs), argnums=primal.wrt, has_aux=True, **options)
        request = dataclasses.replace(request, is_loss=False, refuses=not self.least and _is_loss(primal))
        made = self._made(request)
        logger.info("%s: %s", self.name, _summary(made))
        if made.compiled is None and _is_over_mesh(primal) and self.bounds["keep"] is None:
            self._warn_of_forecast(made)
        return made.decision

    def _made(self, request: Request) -> Plan:
        """The plan of a request, by prediction where the target cannot be compiled for and nobody asked for that."""
        try:
            return plan_for(request, **self.bounds)
        except TargetError:
            if self.options["verify"] is not None or request.verify == "replay":
                raise
            return plan_for(dataclasses.replace(request, verify="replay"), **self.bounds)

    def _warn_of_forecast(self, made: Plan) -> None:
        logger.warning(
            "%s: %s, for a budget of %s, are a forecast: on a mesh the compiler decides what one device holds, and may"
            ' need 15 %% more, small programs more than that. verify="compile" reads what it needs.',
            self.name,
            format_bytes(made.peak_bytes),
            format_bytes(made.budget_bytes),
        )

    def _warn_of_mesh(self, primal: Primal) -> None:
        if devices_of_mesh() > 1 and not any(primal.shardings):
            logger.warning(
                "%s: a mesh of %d devices is set, and nothing says where the arguments are: the budget is taken to be"
                " of whole arrays, not for one device's share. Say it with in_shardings=..., as jax.jit takes it, or"
                " plan with jaxremat.plan and arguments that are placed.",
                self.name,
                devices_of_mesh(),
            )

    def _emitted(self, primal: Primal) -> Callable[..., list[Any]]:
        plain = lambda *inputs: jaxprs.evaluate(primal.jaxpr, inputs)
        if not primal.wrt or not primal.cotangents_of:
            return plain
        if self.emit != "schedule":
            return self._in_checkpoints(primal) if _reverses(primal) else plain

        @functools.cache
        def choose(wrt: tuple[int, ...]) -> tuple[Joint, Script]:
            planned = dataclasses.replace(primal, wrt=wrt)
            decision = self._decision(planned)
            return decision.form.script(planned, decision.device)

        scheduled = emit_scheduled(primal, choose)
        return scheduled if _reverses(primal) else self._where_reversible(primal, scheduled, plain)

    def _in_checkpoints(self, primal: Primal) -> Callable[..., Any]:
        """The program in a form that is planned before anybody differentiates it; as it is where nobody can."""
        try:
            return self._decision(primal).emitted(primal)
        except NotImplementedError as error:
            logger.info("%s stays as it is: %s", self.name, error)
            return lambda *inputs: jaxprs.evaluate(primal.jaxpr, inputs)

    def _where_reversible(
        self, primal: Primal, scheduled: Callable[..., Any], plain: Callable[..., Any]
    ) -> Callable[..., Any]:
        """Of a program with a `while_loop`, which JAX differentiates in forward mode only: planned where none of the
        differentiated inputs reaches the loop."""

        def run(*inputs: Any) -> Any:
            flags = compat.have_tangents(inputs)
            if has_reverse_mode(primal.jaxpr, flags if any(flags) else [True] * len(inputs)):
                return scheduled(*inputs)
            logger.info("%s has a while_loop in the way of its gradient: it stays as it is", self.name)
            return plain(*inputs)

        return run


def _verification(primal: Primal) -> str:
    """Predictions are trusted, except where the partitioner decides what a device holds, and can be asked."""
    return "compile" if _is_over_mesh(primal) and not jax.sharding.get_abstract_mesh().manual_axes else "replay"


def _is_over_mesh(primal: Primal) -> bool:
    return any(sharding and sharding.mesh.size > 1 for sharding in primal.shardings)


def _is_loss(primal: Primal) -> bool:
    """Whether one number is differentiated; otherwise the program is a block of a larger one."""
    results = [jaxprs.shape_of(primal.jaxpr.outvars[i]) for i in primal.cotangents_of]
    return len(results) == 1 and not results[0].shape


def _reverses(primal: Primal) -> bool:
    return has_reverse_mode(primal.jaxpr, [True] * len(primal.jaxpr.invars))


@dataclasses.dataclass(frozen=True, eq=False)
class _Traced:
    """A function that was traced: its program, and the flat function that runs it."""

    primal: Primal
    flat: Callable[..., list[Any]]

    def __call__(self, arrays: Sequence[Any]) -> Any:
        return jax.tree.unflatten(self.primal.out_tree, self.flat(*self.primal.captured, *arrays))


def _forwarding(primal: Primal, emit: Callable[[Primal], Callable[..., Any]]) -> Callable[..., list[Any]]:
    """The flat function of a primal, of which only results that are computed are emitted: inputs pass by themselves."""
    position = {var: i for i, var in enumerate(primal.jaxpr.invars)}
    atoms = primal.jaxpr.outvars
    computed = [k for k, atom in enumerate(atoms) if not isinstance(atom, Literal) and atom not in position]

    def run(*inputs: Any) -> Any:
        outputs = jaxprs.evaluate(primal.jaxpr, inputs)
        return [outputs[k] for k in computed]

    jaxpr = jax.make_jaxpr(run)(*map(jaxprs.shape_of, primal.jaxpr.invars))
    wanted = tuple(n for n, k in enumerate(computed) if k in set(primal.cotangents_of))
    emitted = emit(dataclasses.replace(primal, jaxpr=jaxpr, cotangents_of=wanted, raw=None))

    def flat(*inputs: Any) -> Any:
        env: dict[Var, Any] = dict(zip(primal.jaxpr.invars, inputs))
        env.update(zip(jaxprs.vars_of([atoms[k] for k in computed]), emitted(*inputs)))
        return [jaxprs.value_of(env, atom) for atom in atoms]

    return flat


def _summary(made: Plan) -> str:
    plain, peak = format_bytes(made.baseline_peak_bytes), format_bytes(made.peak_bytes)
    if made.decision.leaves_function_alone:
        takes = plain if made.compiled is None else format_bytes(made.compiled.peak_bytes)
        return f"stays as it is: {takes} for {format_bytes(made.budget_bytes)}"
    return (
        f"planned for {format_bytes(made.budget_bytes)} on {made.target}: peak {peak} of {plain}, {made.overhead:+.1%}"
        f" time, in {made.solve_seconds:.1f} s"
    )
