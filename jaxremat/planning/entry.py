"""From a function and a budget to a plan, the same one for all processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax

from jaxremat.base.budget import Budget, parse_budget
from jaxremat.base.collecting import collected_seldom
from jaxremat.planning.chunks import plan_with_chunks
from jaxremat.planning.hosts import agree
from jaxremat.planning.load import checked, restored_for
from jaxremat.planning.plan import Plan
from jaxremat.planning.plan_cache import cached
from jaxremat.planning.planning import Planning
from jaxremat.planning.request import Request, checked_request
from jaxremat.planning.storage import parse_plan, plan_text
from jaxremat.show.progress import StatusLine
from jaxremat.solvers.base import Solver


def plan(
    fun: Callable[..., Any],
    /,
    *args: Any,
    budget: Budget,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    solver: str | Solver | type[Solver] = "auto",
    target: str | None = None,
    emit: str = "schedule",
    verify: str = "compile",
    seed: int = 0,
    allow: Sequence[str] = (),
    host_budget: int | str | None = None,
    **kwargs: Any,
) -> Plan:
    """Plans the gradient of a function so that its compiled program fits in a number of bytes.

    Args:
      fun: any JAX function; the gradient is that of its (first) result.
      args, kwargs: what it is called with: arrays or ShapeDtypeStructs (with shardings), in trees; no array is read.
        Python numbers are traced where the function lets them, as by `jax.jit`; everything else is static.
      budget: bytes (int), text such as "12GiB", a fraction in (0, 1] of the plain program's peak, "least" for the
        smallest peak that is known how to reach, or "device" for what the device's allocator gives. It bounds
        argument + output + temporary - alias bytes of the compiled `jit(value_and_grad(fun))` on one device.
      argnums, has_aux: as in `jax.grad`.
      solver: name, class or instance of a solver of graphs; "auto" is the default search.
      target: device to plan for, such as "h200"; None is the default backend's.
      emit: "schedule", "names" or "segments".
      verify: "compile" compiles and corrects until the program fits; "replay" trusts the prediction, and hears the
        compiler only before it refuses.
      seed: for solvers that draw random numbers.
      allow: permissions for what is not free of consequences: "chunk" lets attention, loss heads and token-wise
        MLPs run in chunks where that is the cheaper way to fit; values and gradients then agree up to rounding.
        "offload" lets values wait in the host's memory, where the target has a link to one. "narrow" lets float32
        values wait as bfloat16, each off by at most 2**-9 of itself, and where that takes more time what scans stack
        in a byte per number with a scale per row: exponentials and the like as float8_e4m3, to the nearest, the others
        as int8, up or down at random, so that gradients are right on average. "project" lets what only gradients of
        weights read wait as random projections to a quarter of the width (CompAct, Shamshoum et al. 2024): in each call
        those gradients are off by twice themselves, in norms, and right on average over calls; no other gradient is.
      host_budget: the most that may wait on the host, in bytes or text; any amount by default.

    Returns:
      A Plan. `plan.apply(fun)` is the function to differentiate. Under `jax.distributed` all processes must call this
      alike: process 0 plans, and the others receive its plan.

    Raises:
      BudgetError: if nothing that was found fits; it carries the smallest peak.
      ArgumentError: for a budget, solver, target, form, permission or argnums that cannot be understood.
    """
    parse_budget(budget)
    request = checked_request(
        fun, args, kwargs, argnums=argnums, has_aux=has_aux, solver=solver, target=target, emit=emit, verify=verify,
        seed=seed, allow=allow, host_budget=host_budget,
    )  # fmt: skip
    return plan_for(request, budget)


@collected_seldom()
def plan_for(request: Request, budget: Budget | None, keep: Budget | None = None) -> Plan:
    """The plan of a request, for a budget or for what it may keep; the same for all processes."""

    def make() -> Plan:
        planning = Planning(request)
        if keep is not None:
            return planning.keeping(keep)
        assert budget is not None  # one of the two is given
        return plan_with_chunks(planning, budget) if "chunk" in request.allow else planning.plan(budget)

    with StatusLine("planning"):
        if jax.process_count() == 1:
            return cached(request, (budget, keep), make)
        received = agree(lambda: plan_text(cached(request, (budget, keep), make)).encode()).decode()
    return checked(restored_for(request, parse_plan(received, "the plan of process 0")))
