"""Flax NNX: modules, methods and functions over modules whose gradient is planned."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

from flax import nnx
from flax.nnx.transforms import general

from jaxremat.base.budget import Budget
from jaxremat.base.errors import ArgumentError
from jaxremat.planning.decorator import PlanOnce

_TAG = "jaxremat"


def remat(
    module: Any = None,
    /,
    *,
    budget: Budget,
    static_argnums: int | tuple[int, ...] = (),
    static_argnames: str | Iterable[str] = (),
    methods: Iterable[str] = ("__call__",),
    **options,
) -> Any:
    """A module class, an unbound method, or a function of modules, whose gradient is planned for a budget.

    State that the call changes (batch statistics, random counts) is changed as it is without planning.

    Args:
      module: a Module class, or a function whose arguments may be or hold modules; without it, a decorator.
      budget: as in `jaxremat.plan`; a fraction is of the call's own gradient program.
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
        return functools.partial(remat, budget=budget, methods=methods, **static, **options)
    if inspect.ismethod(module):
        owner = type(module.__self__).__name__
        raise ArgumentError(
            f"{module.__name__} is bound to a module: give the class's own {owner}.{module.__name__}, and call the"
            " result with the module first"
        )
    if not isinstance(module, type):
        name = getattr(module, "__name__", type(module).__name__)
        return _planned(module, PlanOnce(name, budget=budget, **options), **static)
    planned = {}
    for method in methods:
        name = module.__name__ if method == "__call__" else f"{module.__name__}.{method}"
        planned[method] = _planned(getattr(module, method), PlanOnce(name, budget=budget, **options), **static)
    identity = {"__module__": module.__module__, "__qualname__": module.__qualname__, "__doc__": module.__doc__}
    return type(module)(module.__name__, (module,), {**planned, **identity})


def _planned(fun: Callable, memory: PlanOnce, static_argnums, static_argnames) -> Callable:
    parameters = list(inspect.signature(fun).parameters)
    numbers = (static_argnums,) if isinstance(static_argnums, int) else static_argnums
    positions = {i if i >= 0 else i + len(parameters) for i in numbers}
    names = {static_argnames} if isinstance(static_argnames, str) else set(static_argnames)
    names.update(parameters[i] for i in positions if i < len(parameters))
    positions.update(i for i, name in enumerate(parameters) if name in names)

    @functools.wraps(fun)
    def call(*args, **kwargs):
        static = {name: kwargs[name] for name in kwargs if name in names}

        def of_arrays(given, keywords):
            full = [args[i] if i in positions else arg for i, arg in enumerate(given)]
            return fun(*full, **keywords, **static)

        given = [None if i in positions else arg for i, arg in enumerate(args)]
        keywords = {name: kwargs[name] for name in kwargs if name not in names}
        pure = memory.decorate(general.merge_inputs(of_arrays, ctxtag=_TAG))
        return nnx.update_context(_TAG)(general.split_inputs(pure, ctxtag=_TAG))(given, keywords)

    return call
