"""From a function and a budget to a plan: trace, search, emit, compile, correct."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Sequence

from jaxremat.budget import Budget, budget_bytes, format_bytes, parse_budget
from jaxremat.cost.devices import Device, resolve_target
from jaxremat.decision import Decision
from jaxremat.emit.form import FORMS
from jaxremat.errors import ArgumentError, BudgetError
from jaxremat.plan import Plan, signature_of
from jaxremat.planner.correction import Correction, correct
from jaxremat.planner.planner import Outcome, Planner
from jaxremat.solvers.registry import solver_named
from jaxremat.trace.joint import Primal, read_primal
from jaxremat.verify.compile import MemoryReport, compile_gradient

logger = logging.getLogger("jaxremat")

_MOST_COMPILATIONS = 8
_MOST_PREDICTIONS = 6
VERIFICATIONS = ("compile", "replay")


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """What was asked for, checked."""

    fun: Callable
    args: tuple
    budget: Budget
    argnums: int | tuple[int, ...]
    has_aux: bool
    solver: str
    device: Device
    emit: str
    verify: str
    seed: int


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
) -> Plan:
    """Plans the gradient of a function so that its compiled program fits in a number of bytes.

    Args:
      fun: any JAX function; the gradient is that of its (first) result.
      args: arrays or ShapeDtypeStructs (with shardings), in trees; no array is read.
      budget: bytes (int), text such as "12GiB", or a fraction in (0, 1] of the plain program's peak. It bounds
        argument + output + temporary - alias bytes of the compiled `jit(value_and_grad(fun))` on one device.
      argnums, has_aux: as in `jax.grad`.
      solver: name of a solver; "auto" is the planner's own search.
      target: device to plan for, such as "h200"; None is the default backend's.
      emit: "schedule", "names" or "segments".
      verify: "compile" compiles and corrects until the program fits; "replay" trusts the prediction.
      seed: for solvers that draw random numbers.

    Returns:
      A Plan. `plan.apply(fun)` is the function to differentiate.

    Raises:
      BudgetError: if nothing that was found fits; it carries the smallest peak.
      ArgumentError: for a budget, solver, target, form or argnums that cannot be understood.
    """
    request = _checked(fun, args, budget, argnums, has_aux, solver, target, emit, verify, seed)
    start = time.perf_counter()
    primal = read_primal(fun, args, request.argnums, has_aux)
    planner = Planner(primal, request.device)
    plain = planner.plain
    solving = time.perf_counter() - start
    report = _compile(request, fun) if verify == "compile" else None
    plain_peak_bytes = report.peak_bytes if report else plain.peak_bytes
    limit = budget_bytes(budget, plain_peak_bytes)
    if plain_peak_bytes <= limit:
        decision = _decision(request, primal, plain, "plain")
        return _plan(request, decision, plain, plain, limit, plain_peak_bytes, report, int(bool(report)), solving)
    start = time.perf_counter()
    predicted = _predicted(planner, limit)
    solving += time.perf_counter() - start
    if verify == "compile":
        return _compiled(request, primal, planner, limit, plain_peak_bytes, solving)
    if predicted.best is None:
        raise _refusal(predicted.smallest.candidate, predicted.smallest.peak_bytes, limit)
    outcome = predicted.best.candidate
    decision = _decision(request, primal, outcome, emit)
    return _plan(request, decision, outcome, plain, limit, plain_peak_bytes, None, 0, solving)


def _predicted(planner: Planner, limit: int) -> Correction[Outcome, None]:
    """The cheapest outcome whose predicted peak is within the limit."""
    offset = planner.plain.replayed_bytes - planner.plain.peak_bytes
    return correct(
        planner.fit,
        lambda outcome: (outcome.peak_bytes, None),
        limit,
        most_trials=_MOST_PREDICTIONS,
        first_aim=max(1, limit + offset),
        expected=lambda outcome: outcome.replayed_bytes,
    )


def _compiled(
    request: Request, primal: Primal, planner: Planner, limit: int, plain_peak_bytes: int, solving: float
) -> Plan:
    """The cheapest plan whose compiled peak is within the limit."""
    spent = [solving]

    def propose(aim: int) -> Outcome:
        start = time.perf_counter()
        predicted = _predicted(planner, aim)
        spent[0] += time.perf_counter() - start
        return (predicted.best or predicted.smallest).candidate

    def measure(outcome: Outcome) -> tuple[int, Plan]:
        decision = _decision(request, primal, outcome, request.emit)
        made = _plan(request, decision, outcome, planner.plain, limit, plain_peak_bytes, None, 0, 0.0)
        report = _compile(request, made.apply(request.fun))
        logger.debug("predicted %s, compiled %s", format_bytes(outcome.peak_bytes), format_bytes(report.peak_bytes))
        return report.peak_bytes, dataclasses.replace(made, compiled=report)

    correction = correct(
        propose,
        measure,
        limit,
        most_trials=_MOST_COMPILATIONS,
        first_aim=limit,
        expected=lambda outcome: outcome.peak_bytes,
    )
    if correction.best is None:
        raise _refusal(correction.smallest.candidate, correction.smallest.peak_bytes, limit)
    return dataclasses.replace(correction.best.measurement, compilations=correction.trials + 1, solve_seconds=spent[0])


def check_options(budget: Budget, solver: str, emit: str, verify: str) -> None:
    """Raises ArgumentError for a budget, solver, form or verification that cannot be understood."""
    parse_budget(budget)
    if solver != "auto":
        solver_named(solver)
    if emit not in FORMS:
        raise ArgumentError(f"emit={emit!r} is unknown; the forms are {', '.join(FORMS)}")
    if verify not in VERIFICATIONS:
        raise ArgumentError(f"verify={verify!r} is unknown; choose one of {', '.join(VERIFICATIONS)}")


def _checked(fun, args, budget, argnums, has_aux, solver, target, emit, verify, seed) -> Request:
    check_options(budget, solver, emit, verify)
    device = resolve_target(target)
    argnums = argnums if isinstance(argnums, int) else tuple(argnums)
    return Request(fun, args, budget, argnums, has_aux, solver, device, emit, verify, seed)


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
        loops=tuple(decision.to_json() for decision in outcome.problem.loops),
        schedule=() if emit == "plain" else tuple(outcome.schedule.tolist()),
    )


def _plan(
    request, decision, outcome, plain, limit, plain_peak_bytes, report, compilations, solve_seconds
) -> Plan:
    return Plan(
        decision=decision,
        problem=outcome.problem,
        schedule=outcome.schedule,
        timeline=outcome.timeline,
        budget_bytes=limit,
        peak_bytes=outcome.peak_bytes,
        baseline_peak_bytes=plain_peak_bytes,
        overhead=outcome.cost / plain.cost - 1,
        compiled=report,
        compilations=compilations,
        solve_seconds=solve_seconds,
        solver=request.solver,
        target=request.device.name,
    )


def _refusal(outcome: Outcome, smallest_bytes: int, limit: int) -> BudgetError:
    return BudgetError(
        f"no plan fits in {format_bytes(limit)}; the minimum peak that was reached is {format_bytes(smallest_bytes)}"
        f" ({smallest_bytes} bytes). A smaller batch, sharding, or a budget of at least that would do.",
        min_peak_bytes=smallest_bytes,
        budget_bytes=limit,
    )
