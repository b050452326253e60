"""Flax NNX: modules, methods and functions over modules whose gradient is planned; steps that change modules."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from jaxremat.base.budget import Budget
from jaxremat.base.errors import ArgumentError
from jaxremat.planning.decorator import PlanOnce, decorated
from jaxremat.planning.static_arguments import static_arguments
from jaxremat.step.jit import jit as jit_of_arrays
from jaxremat.step.plan import StepPlan
from jaxremat.step.planned_step import PlannedStep
from jaxremat.trace.nnx_state import of_trees, paths_in_modules, with_modules


def jit(fun: Callable[..., Any] | None = None, /, *, budget: Budget, **options: Any) -> Any:
    """`nnx.jit` for a whole step whose compiled program fits in a number of bytes.

    What the step changes in the modules, optimizers, metrics and random streams among its arguments is changed, as
    under `nnx.jit`.

    Args:
      fun: the step; without it, `jit(budget=...)` is a decorator.
      budget: bytes (int), text such as "12GiB", a fraction in (0, 1] of the step's own compiled peak, "least" or
        "device", as in `jaxremat.jit`.
      options: all others of `jaxremat.jit`: `donate_argnums` and `donate_argnames` (buffers of a donated module's state
        are used for its new state), `static_argnums`, `static_argnames`, `in_shardings` and `out_shardings` (one for
        all of a module), `target`, `solver`, `verify`, `allow`, `host_budget`, `seed`.

    Returns:
      A `ModuleStep`: called like the result of `nnx.jit`, with `plan(*args)`, `lower(*args)` and `trace(*args)`.

    Raises:
      ArgumentError: for a method that is bound to a module, whose state would be left out; and for an option or an
        argument that cannot be understood.
      BudgetError: when it is called, lowered or planned, and nothing that was found fits.
    """
    if fun is None:
        return functools.partial(jit, budget=budget, **options)
    _require_unbound(fun)
    if (of_results := options.get("out_shardings")) is not None:
        options = {**options, "out_shardings": ((options.get("in_shardings"), None), of_results)}
    step: PlannedStep = jit_of_arrays(of_trees(fun), budget=budget, **options)
    return ModuleStep(fun, step.with_paths(paths_in_modules))


class ModuleStep:
    """A planned step over modules; called like the result of `nnx.jit`."""

    def __init__(self, fun: Callable[..., Any], step: PlannedStep) -> None:
        functools.update_wrapper(self, fun)
        self._step = step

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return with_modules(self._step, args, kwargs)

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else types.MethodType(self, instance)

    def plan(self, *args: Any, **kwargs: Any) -> StepPlan:
        """The plan for some arguments; modules of shapes will do. It is made once per signature.

        Raises:
          BudgetError: if nothing that was found fits; it carries the smallest peak and who holds it.
        """
        return self._asked(self._step.plan, args, kwargs)

    def load_plan(self, path: str | Path, *args: Any, **kwargs: Any) -> StepPlan:
        """Reads a plan that `StepPlan.save` wrote, and uses it for arguments of this signature. Nothing is solved.

        Raises:
          PlanMismatchError: if the file is damaged, or the step or its arguments have changed; with the difference.
        """
        return self._asked(functools.partial(self._step.load_plan, path), args, kwargs)

    def lower(self, *args: Any, **kwargs: Any) -> Any:
        """The planned step, lowered for some arguments, as a function of the arrays that they hold."""
        return self._asked(self._step.lower, args, kwargs)

    def trace(self, *args: Any, **kwargs: Any) -> Any:
        """The planned step, traced for some arguments, as a function of the arrays that they hold."""
        return self._asked(self._step.trace, args, kwargs)

    def _asked(self, question: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """What is said of a call; the modules stay as they are."""
        return with_modules(lambda *args, **kwargs: ((args, kwargs), question(*args, **kwargs)), args, kwargs)


def remat(
    module: Any = None,
    /,
    *,
    budget: Budget | None = None,
    keep: Budget | None = None,
    static_argnums: int | tuple[int, ...] = (),
    static_argnames: str | Iterable[str] = (),
    methods: Iterable[str] = ("__call__",),
    **options: Any,
) -> Any:
    """A module class, an unbound method, or a function of modules, whose gradient is planned for a budget.

    State that the call changes (batch statistics, random counts) is changed as it is without planning.

    Args:
      module: a Module class, or a function whose arguments may be or hold modules; without it, a decorator.
      keep: what a call may leave behind for its backward beside its inputs, which is what `nnx.remat` bounds: bytes,
        text, or a fraction of what its backward reads. 0 is full rematerialization.
      budget: instead of `keep`, as in `jaxremat.plan`, of the program of one call: it bounds its inputs, its gradients
        and what it computes. Below what is reached, it takes
        the least that its peak and what it leaves behind come to together, with a warning. A fraction is of the
        call's own gradient program.
      static_argnums, static_argnames: arguments that are no arrays, by position or by name; `self` is number 0.
      methods: of a class, the methods to plan.
      options: `solver`, `target`, `emit`, `verify` and `seed`, as in `jaxremat.remat`.

    Returns:
      What was given, planned. A class becomes a subclass of the same name.

    Raises:
      ArgumentError: for a method that is bound to a module, whose state would be left out.
    """
    static: dict[str, Any] = {"static_argnums": static_argnums, "static_argnames": static_argnames}
    if module is None:
        return functools.partial(remat, budget=budget, keep=keep, methods=methods, **static, **options)
    options = {"budget": budget, "keep": keep, **options}
    _require_unbound(module)
    if not isinstance(module, type):
        return _planned(module, getattr(module, "__name__", type(module).__name__), static, options)
    planned = {}
    for method in methods:
        name = module.__name__ if method == "__call__" else f"{module.__name__}.{method}"
        planned[method] = _planned(getattr(module, method), name, static, options)
    identity = {"__module__": module.__module__, "__qualname__": module.__qualname__, "__doc__": module.__doc__}
    return type(module)(module.__name__, (module,), {**planned, **identity})


def _require_unbound(fun: Any) -> None:
    if inspect.ismethod(fun):
        owner = type(fun.__self__).__name__
        raise ArgumentError(
            f"{fun.__name__}: bound methods are not taken; give the class's own {owner}.{fun.__name__}, and call"
            " the result with the module first"
        )


def _planned(fun: Callable[..., Any], name: str, static: dict[Any, Any], options: dict[Any, Any]) -> Callable[..., Any]:
    return decorated(fun, PlanOnce(name, least=True, **options), static_arguments(fun, **static))
