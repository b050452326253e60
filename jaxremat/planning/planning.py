"""From a function and a budget to a plan: trace, search, emit, compile, correct."""

from __future__ import annotations

import dataclasses
import functools
import logging
import time
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxremat import attention
from jaxremat.backends.devices import Device, resolve_target
from jaxremat.base.budget import Budget, budget_bytes, format_bytes, parse_budget
from jaxremat.base.errors import ArgumentError, BudgetError, TargetError
from jaxremat.compiled.compile import MemoryReport, compile_gradient
from jaxremat.planner.correction import Correction, Trial, correct
from jaxremat.planner.decision import Decision
from jaxremat.planner.emission import FORMS
from jaxremat.planner.foreign import ForeignPlanner
from jaxremat.planner.forms import FormOutcome, FormPlanner, OwnNamesPlanner, planner_for
from jaxremat.planner.planner import Outcome, Planner
from jaxremat.planning.budget_error import refusal
from jaxremat.planning.hosts import agree
from jaxremat.planning.load import restored
from jaxremat.planning.plan import CHUNKED, Plan, apply_flat, require_function, signature_of
from jaxremat.planning.storage import parse_plan, plan_text
from jaxremat.solvers.registry import solver_named
from jaxremat.trace import jaxpr as jaxprs
from jaxremat.trace.arguments import arrays_only, called, checked_argnums
from jaxremat.trace.joint import Primal, read_primal

logger = logging.getLogger("jaxremat")

_MOST_COMPILATIONS = 8
_MOST_CONTENDERS = 4
_CONTENDER_ROOM = 0.1
_MOST_PREDICTIONS = 6
_MOST_SMALL = 24
_NO_KEYWORDS: Mapping[str, Any] = types.MappingProxyType({})
VERIFICATIONS = ("compile", "replay")


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """What was asked for, the budget aside; checked.

    Attributes:
      fun, args: a function of trees of arrays, and those; everything else that the user's function takes is bound.
      is_loss: whether `jax.grad` will be asked of the function; otherwise it is a part of one.
      refuses: whether a budget that nothing fits in is an error; otherwise the smallest plan is made, with a warning.
    """

    fun: Callable
    args: tuple
    argnums: int | tuple[int, ...]
    has_aux: bool
    solver: str
    device: Device
    emit: str
    verify: str
    seed: int
    is_loss: bool = True
    refuses: bool = True


def plan(
    fun: Callable,
    *args,
    budget: Budget,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    solver: str = "auto",
    target: str | None = None,
    emit: str = "schedule",
    verify: str = "compile",
    seed: int = 0,
    chunk_attention: bool = False,
    **kwargs,
) -> Plan:
    """Plans the gradient of a function so that its compiled program fits in a number of bytes.

    Args:
      fun: any JAX function; the gradient is that of its (first) result.
      args, kwargs: what it is called with: arrays or ShapeDtypeStructs (with shardings), in trees; no array is read.
        Python numbers are traced where the function lets them, as by `jax.jit`; everything else is static.
      budget: bytes (int), text such as "12GiB", or a fraction in (0, 1] of the plain program's peak. It bounds
        argument + output + temporary - alias bytes of the compiled `jit(value_and_grad(fun))` on one device.
      argnums, has_aux: as in `jax.grad`.
      solver: name of a solver of graphs, such as "fastsa", or "auto", the planner's own search.
      target: device to plan for, such as "h200"; None is the default backend's.
      emit: "schedule", "names" or "segments".
      verify: "compile" compiles and corrects until the program fits; "replay" trusts the prediction, and compiles only
        where it would refuse.
      seed: for solvers that draw random numbers.
      chunk_attention: whether softmax attention may run in chunks (`jaxremat.attention.rewrite`) where that is the
        cheaper way to fit; values and gradients then agree up to rounding.

    Returns:
      A Plan. `plan.apply(fun)` is the function to differentiate. Under `jax.distributed` all processes must call this
      alike: process 0 plans, and the others receive its plan.

    Raises:
      BudgetError: if nothing that was found fits; it carries the smallest peak.
      ArgumentError: for a budget, solver, target, form or argnums that cannot be understood.
    """
    parse_budget(budget)
    request = checked_request(fun, args, argnums, has_aux, solver, target, emit, verify, seed, kwargs)
    return plan_for(request, budget, chunk_attention)


def plan_for(request: Request, budget: Budget, chunk_attention: bool = False) -> Plan:
    """The plan of a request, the same for all processes."""

    def make() -> Plan:
        planning = Planning(request)
        return plan_with_chunked_attention(planning, budget) if chunk_attention else planning.plan(budget)

    if jax.process_count() == 1:
        return make()
    received = agree(lambda: plan_text(make()).encode()).decode()
    return restored(parse_plan(received, "the plan of process 0"), request.fun, request.args, {})


class Planning:
    """Plans of one program for any number of budgets: it is traced once, and compiled as written once.

    Args:
      request: what is planned, and how.
    """

    def __init__(self, request: Request):
        self.request = request
        start = time.perf_counter()
        self.primal = read_primal(request.fun, request.args, request.argnums, request.has_aux)
        self.warnings = told_of_loss(self.primal) if request.is_loss else ()
        self.planner = _planner(request, self.primal)
        self.plain = self.planner.plain
        self._traced_seconds = time.perf_counter() - start

    @functools.cached_property
    def plain_report(self) -> MemoryReport | None:
        """Memory of the program without recomputation, where plans are verified by compiling."""
        if self.request.verify != "compile":
            return None
        return _compile(self.request, _unrolled(self.primal) if self._speaks_own_names else self.request.fun)

    @property
    def plain_peak_bytes(self) -> int:
        """Peak of the program as written: compiled where plans are, predicted otherwise."""
        return self.plain_report.peak_bytes if self.plain_report else self.plain.peak_bytes

    @property
    def _speaks_own_names(self) -> bool:
        """Whether the author's checkpoints stay, so that the question is what they save."""
        return isinstance(self.planner, OwnNamesPlanner)

    def plan(self, budget: Budget) -> Plan:
        """The cheapest plan within a budget; raises BudgetError if nothing that was found fits."""
        limit = budget_bytes(budget, self.plain_peak_bytes)
        if self.plain_peak_bytes <= limit and not self._speaks_own_names:
            made = self._plan(self.plain, limit, "plain")
            return dataclasses.replace(made, compiled=self.plain_report, compilations=int(bool(self.plain_report)))
        return self._compiled(limit) if self.request.verify == "compile" else self._replayed(limit)

    def _replayed(self, limit: int) -> Plan:
        """The cheapest plan whose predicted peak is within the limit."""
        start = time.perf_counter()
        predicted = _predicted(self.planner, limit)
        if predicted.best is None and self.request.refuses:
            return self._heard(predicted.smallest, limit)
        made = self._plan((predicted.best or predicted.smallest).candidate, limit, self.request.emit)
        made = dataclasses.replace(made, solve_seconds=self._traced_seconds + time.perf_counter() - start)
        return made if predicted.best else self._over(made)

    def _heard(self, smallest: Trial, limit: int) -> Plan:
        """What the compiler says of a limit that the prediction alone would refuse; where there is no compiler for the
        target, the smallest plan, with a warning."""
        try:
            return Planning(dataclasses.replace(self.request, verify="compile")).plan(limit)
        except TargetError as error:
            return self._over(self._plan(smallest.candidate, limit, self.request.emit), f" {error}")

    def _over(self, made: Plan, why: str = "") -> Plan:
        """A plan that is the smallest known and more than the budget, with a warning."""
        needs = "compiled" if made.compiled else "predicted"
        peak = made.compiled.peak_bytes if made.compiled else made.peak_bytes
        told = (
            f"over budget: the smallest plan that was found is {needs} to take {format_bytes(peak)} ({peak} bytes), the"
            f" budget is {format_bytes(made.budget_bytes)}.{why}"
        )
        logger.warning(told)
        return dataclasses.replace(made, warnings=(*made.warnings, told))

    def _compiled(self, limit: int) -> Plan:
        """The cheapest plan whose compiled peak is within the limit."""
        spent = [self._traced_seconds]
        measured: dict[int, tuple[Outcome, Plan]] = {}

        def propose(aim: int) -> Outcome:
            start = time.perf_counter()
            predicted = _predicted(self.planner, aim)
            spent[0] += time.perf_counter() - start
            return (predicted.best or predicted.smallest).candidate

        def measure(outcome: Outcome) -> tuple[int, Plan]:
            made = self._plan(outcome, limit, self.request.emit)
            report = _compile(self.request, made.apply(self.request.fun))
            logger.debug("predicted %s, compiled %s", format_bytes(outcome.peak_bytes), format_bytes(report.peak_bytes))
            made = dataclasses.replace(made, compiled=report)
            measured[id(outcome)] = outcome, made
            return report.peak_bytes, made

        correction = correct(
            propose,
            measure,
            limit,
            most_trials=_MOST_COMPILATIONS,
            first_aim=limit,
            expected=lambda outcome: outcome.peak_bytes,
        )
        if correction.best is None and self.request.refuses:
            raise self._refusal(correction.smallest, limit)
        if correction.best is None:
            return self._over(measured[id(correction.smallest.candidate)][1])
        best = correction.best.candidate
        for outcome in self._contenders(best, int(_CONTENDER_ROOM * limit), measured):
            if outcome.cost < best.cost and measure(outcome)[0] <= limit:
                best = outcome
        made = measured[id(best)][1]
        return dataclasses.replace(made, compilations=len(measured) + 1, solve_seconds=spent[0])

    def _refusal(self, smallest: Trial, limit: int) -> BudgetError:
        """The error for this limit; where the form stays plain JAX, with what a schedule is predicted to need."""
        schedule_bytes = None
        if isinstance(self.planner, FormPlanner):
            predicted = _predicted(Planner(self.primal, self.request.device), limit)
            schedule_bytes = (predicted.best or predicted.smallest).peak_bytes
        return refusal(smallest.candidate, smallest.peak_bytes, limit, schedule_bytes)

    def _contenders(self, best: Outcome, room_bytes: int, measured: dict[int, Any]) -> list[Outcome]:
        """Cheaper outcomes that may fit all the same: forms that stay plain JAX leave little to predict by."""
        if not isinstance(self.planner, FormPlanner):
            return []
        untried: list[Outcome] = [o for o in self.planner.contenders(best, room_bytes) if id(o) not in measured]
        return untried[:_MOST_CONTENDERS]

    def _plan(self, outcome: Outcome, limit: int, emit: str) -> Plan:
        """A plan of an outcome, before anything of it was compiled."""
        return Plan(
            decision=_decision(self.request, self.primal, outcome, emit),
            problem=outcome.problem,
            schedule=outcome.schedule,
            timeline=outcome.timeline,
            budget_bytes=limit,
            peak_bytes=outcome.peak_bytes,
            baseline_peak_bytes=self.plain_peak_bytes,
            overhead=outcome.cost / self.plain.cost - 1,
            compiled=None,
            compilations=0,
            solve_seconds=self._traced_seconds,
            solver=self.request.solver,
            target=self.request.device.name,
            warnings=self.warnings,
        )


def told_of_loss(primal: Primal) -> tuple[str, ...]:
    """Warnings where `jax.grad` would refuse a function that `jax.vjp` takes.

    Raises:
      ArgumentError: for a complex loss.
    """
    results = [jaxprs.shape_of(primal.jaxpr.outvars[i]) for i in primal.cotangents_of]
    told = ", ".join(f"{result.dtype}{list(result.shape)}" for result in results)
    if any(jnp.issubdtype(result.dtype, jnp.complexfloating) for result in results):
        raise ArgumentError(
            f"the function returns {told}: a complex result has no gradient of one number. Return a real one, such as"
            " its absolute value"
        )
    if len(results) == 1 and not results[0].shape:
        return ()
    pair = " If only the first is the loss, plan with has_aux=True." if len(results) > 1 else ""
    return (
        f"the function returns {told}, and jax.grad takes one scalar: this plan is for jax.vjp.{pair or ' Or sum it.'}",
    )


def plan_with_chunked_attention(planning: Planning, budget: Budget) -> Plan:
    """The cheaper of two plans: of the program as written, and of the same with its attention in chunks."""
    limit = budget_bytes(budget, planning.plain_peak_bytes)
    refused: BudgetError | None = None
    try:
        made = planning.plan(limit)
    except BudgetError as error:
        refused = error
    else:
        if made.overhead <= 0:
            return made
    request = planning.request
    chunked = Planning(dataclasses.replace(request, fun=attention.rewrite(request.fun, target=request.device.name)))
    try:
        other = chunked.plan(limit)
    except BudgetError as error:
        if refused is not None:
            raise min(refused, error, key=lambda e: e.min_peak_bytes) from None
        return made
    overhead = (1 + other.overhead) * chunked.plain.cost / planning.plain.cost - 1
    if refused is None and made.overhead <= overhead:
        return made
    decision = dataclasses.replace(other.decision, extra={**other.decision.extra, CHUNKED: True})
    baseline = planning.plain_peak_bytes
    return dataclasses.replace(other, decision=decision, overhead=overhead, baseline_peak_bytes=baseline)


def _planner(request: Request, primal: Primal) -> Planner | FormPlanner | ForeignPlanner:
    if request.solver != "auto":
        return _foreign_planner(request, primal)
    if request.emit == "schedule":
        return Planner(primal, request.device)
    return planner_for(request.emit, primal, request.device)


def _foreign_planner(request: Request, primal: Primal) -> ForeignPlanner:
    if request.emit != "schedule":
        raise ArgumentError(f"solver={request.solver!r} decides schedules: emit='schedule', not {request.emit!r}")
    return ForeignPlanner(primal, request.device, request.solver, request.seed)


def _unrolled(primal: Primal) -> Callable:
    """The program without the author's checkpoints."""
    return lambda *args: apply_flat(primal, lambda *inputs: jaxprs.evaluate(primal.jaxpr, inputs), args)


def _predicted(planner: Planner | FormPlanner | ForeignPlanner, limit: int) -> Correction[Outcome, None]:
    """The cheapest outcome whose predicted peak is within the limit."""
    offset = planner.plain.replayed_bytes - planner.plain.peak_bytes

    def measure(outcome: Outcome) -> tuple[int, None]:
        return outcome.peak_bytes, None

    correction = correct(
        planner.fit,
        measure,
        limit,
        most_trials=_MOST_PREDICTIONS,
        first_aim=max(1, limit + offset),
        expected=lambda outcome: outcome.replayed_bytes,
    )
    if correction.best or not isinstance(planner, Planner):
        return correction
    return correction.with_more(planner.smallest_few(_MOST_SMALL), measure, limit)


def check_options(budget: Budget, solver: str, emit: str, verify: str) -> None:
    """Raises ArgumentError for a budget, solver, form or verification that cannot be understood."""
    parse_budget(budget)
    _check_names(solver, emit, verify)


def checked_request(
    fun,
    args,
    argnums,
    has_aux,
    solver,
    target,
    emit,
    verify,
    seed,
    kwargs: Mapping[str, Any] = types.MappingProxyType({}),
) -> Request:
    """The arguments of `plan`, without the budget; raises ArgumentError where one cannot be understood."""
    require_function(fun)
    _check_names(solver, emit, verify)
    argnums = checked_argnums(argnums, len(args))
    call = called(fun, args, kwargs, argnums)
    bound = arrays_only(call.bind(fun))
    return Request(bound, call.arrays, argnums, has_aux, solver, resolve_target(target), emit, verify, seed)


def _check_names(solver: str, emit: str, verify: str) -> None:
    if solver != "auto":
        solver_named(solver)
    if emit not in FORMS:
        raise ArgumentError(f"emit={emit!r} is unknown; the forms are {', '.join(FORMS)}")
    if verify not in VERIFICATIONS:
        raise ArgumentError(f"verify={verify!r} is unknown; choose one of {', '.join(VERIFICATIONS)}")


def _compile(request: Request, fun: Callable) -> MemoryReport:
    return compile_gradient(
        fun, request.args, argnums=request.argnums, has_aux=request.has_aux, target=request.device.name
    )


def _decision(request: Request, primal: Primal, outcome: Outcome, emit: str) -> Decision:
    return Decision(
        fingerprint=primal.fingerprint,
        signature=signature_of(request.args),
        argnums=request.argnums,
        has_aux=request.has_aux,
        emit=emit,
        target=request.device.name,
        loops=tuple(decision.to_json() for decision in outcome.problem.loops),
        schedule=tuple(outcome.schedule.tolist()) if emit == "schedule" else (),
        fences=outcome.fences if emit == "schedule" else None,
        start=outcome.start if emit == "schedule" else None,
        fenced=outcome.fenced,
        names=outcome.names if isinstance(outcome, FormOutcome) else (),
        extra=outcome.extra if isinstance(outcome, FormOutcome) else {},
    )
