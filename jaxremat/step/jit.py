"""`jaxremat.jit`: `jax.jit` for a whole step, with a budget."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from jaxremat.base.budget import Budget
from jaxremat.planning.request import permissions, require_function
from jaxremat.solvers.base import Solver
from jaxremat.solvers.registry import solver_named
from jaxremat.step.arguments import StepArguments
from jaxremat.step.options import StepOptions
from jaxremat.step.planned_step import PlannedStep


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
    planned program. Where the step cannot be compiled by itself there, because it closes over traced values, averages
    along an axis of a `vmap` or is a part of a `shard_map`, the prediction is trusted.

    Args:
      fun: the step; without it, `jit(budget=...)` is a decorator. Leaves of its arguments and results that are neither
        arrays nor numbers are static; of a module of Equinox all but arrays are, as for its `filter_jit`.
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
        slice by slice, forward and backward: the same values up to the order of sums; not over a mesh. "narrow" lets
        what a scan stacks for its gradient wait rounded, to bfloat16 or to a byte per number: gradients are then
        approximate. "project" lets what only gradients of weights read wait there as random projections: in each step
        those gradients are off by twice themselves, and right on average over steps.
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
    require_function(fun)
    shardings = {"in_shardings": in_shardings, "out_shardings": out_shardings}
    shardings = {name: value for name, value in shardings.items() if value is not None}
    return PlannedStep(fun, options, StepArguments(fun, options.is_host_memory, **given), given, shardings)
