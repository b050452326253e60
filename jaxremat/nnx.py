"""Flax NNX: modules, methods and functions over modules whose gradient is planned."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

from flax import nnx
from flax.nnx.transforms import general

from jaxremat.budget import Budget
from jaxremat.decorator import PlanOnce

_TAG = "jaxremat"


def remat(
    target: Any = None,
    *,
    budget: Budget,
    static_argnums: int | tuple[int, ...] = (),
    methods: Iterable[str] = ("__call__",),
    **options,
) -> Any:
    """A module class, an unbound method, or a function of modules, whose gradient is planned for a budget.

    State that the call changes (batch statistics, random counts) is changed as it is without planning.

    Args:
      target: a Module class, or a function whose arguments may be or hold modules; without it, a decorator.
      budget: as in `jaxremat.plan`; a fraction is of the call's own gradient program.
      static_argnums: positions of arguments that are no arrays; `self` is number 0.
      methods: of a class, the methods to plan.
      options: `solver`, `target`, `emit`, `verify` and `seed`, as in `jaxremat.remat`.

    Returns:
      What was given, planned. A class becomes a subclass of the same name.
    """
    if target is None:
        return functools.partial(remat, budget=budget, static_argnums=static_argnums, methods=methods, **options)
    if not isinstance(target, type):
        return _planned(target, static_argnums, PlanOnce(getattr(target, "__name__", "nnx"), budget=budget, **options))
    planned = {
        name: _planned(
            getattr(target, name), static_argnums, PlanOnce(f"{target.__name__}.{name}", budget=budget, **options)
        )
        for name in methods
    }
    identity = {"__module__": target.__module__, "__qualname__": target.__qualname__, "__doc__": target.__doc__}
    return type(target)(target.__name__, (target,), {**planned, **identity})


def _planned(fun: Callable, static_argnums: int | tuple[int, ...], memory: PlanOnce) -> Callable:
    static = (static_argnums,) if isinstance(static_argnums, int) else tuple(static_argnums)

    @functools.wraps(fun)
    def call(*args, **kwargs):
        fixed = {i % len(args): args[i % len(args)] for i in static if -len(args) <= i < len(args)}
        given = [None if i in fixed else arg for i, arg in enumerate(args)]

        def of_arrays(given, kwargs):
            return fun(*(fixed.get(i, arg) for i, arg in enumerate(given)), **kwargs)

        pure = memory.decorate(general.merge_inputs(of_arrays, ctxtag=_TAG))
        return nnx.update_context(_TAG)(general.split_inputs(pure, ctxtag=_TAG))(given, kwargs)

    return call
