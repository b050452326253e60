"""Flax NNX: modules, methods and functions over modules whose gradient is planned."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

from jaxremat.base.budget import Budget
from jaxremat.base.errors import ArgumentError
from jaxremat.planning.decorator import PlanOnce, decorated
from jaxremat.planning.static_arguments import static_arguments


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
    if inspect.ismethod(module):
        owner = type(module.__self__).__name__
        raise ArgumentError(
            f"{module.__name__}: bound methods are not taken; give the class's own {owner}.{module.__name__}, and call"
            " the result with the module first"
        )
    if not isinstance(module, type):
        return _planned(module, getattr(module, "__name__", type(module).__name__), static, options)
    planned = {}
    for method in methods:
        name = module.__name__ if method == "__call__" else f"{module.__name__}.{method}"
        planned[method] = _planned(getattr(module, method), name, static, options)
    identity = {"__module__": module.__module__, "__qualname__": module.__qualname__, "__doc__": module.__doc__}
    return type(module)(module.__name__, (module,), {**planned, **identity})


def _planned(fun: Callable[..., Any], name: str, static: dict[Any, Any], options: dict[Any, Any]) -> Callable[..., Any]:
    return decorated(fun, PlanOnce(name, least=True, **options), static_arguments(fun, **static))
