"""Flax linen: a module whose gradient is planned, with the same parameters, names and state."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import flax.core.lift as lift
import flax.linen as nn

from jaxremat.budget import Budget
from jaxremat.decorator import PlanOnce


def remat(
    target: Any,
    *,
    budget: Budget,
    variables: Any = True,
    rngs: Any = True,
    static_argnums: int | tuple[int, ...] = (),
    methods: Iterable[str] | Mapping[str, Mapping[str, Any]] | None = None,
    **options,
) -> Any:
    """A module class, or a method of one, whose gradient is planned for a budget where it is differentiated.

    Parameters and their names, random streams, batch statistics, `mutable` and `sow` stay as they are without it. A
    plan is made once per program, whatever the number of instances.

    Args:
      target: a Module class, or a function that takes a Module first.
      budget: as in `jaxremat.plan`; a fraction is of the module's own gradient program.
      variables, rngs: collections and random streams to lift, as in `flax.linen.remat`.
      static_argnums: arguments that are no arrays, as in `flax.linen.remat`: `self` is number 0.
      methods: names of the methods to plan, `__call__` by default; or a dictionary from names to options.
      options: `solver`, `target`, `emit`, `verify` and `seed`, as in `jaxremat.remat`.

    Returns:
      What was given, planned.
    """
    name = getattr(target, "__name__", type(target).__name__)
    common = {"budget": budget, "variables": variables, "rngs": rngs, "static_argnums": static_argnums, **options}
    if isinstance(methods, Mapping):
        methods = {method: _lifting(f"{name}.{method}", **{**common, **own}) for method, own in methods.items()}
        planned = nn.transforms.lift_transform(_planned, target, methods=methods)
    else:
        planned = nn.transforms.lift_transform(_planned, target, methods=methods, **_lifting(name, **common))
    return _named_as(planned, target)


def _lifting(name: str, *, variables, rngs, static_argnums, **options) -> dict[str, Any]:
    numbers = (static_argnums,) if isinstance(static_argnums, int) else tuple(static_argnums)
    return {
        "memory": PlanOnce(name, **options),
        "variables": variables,
        "rngs": rngs,
        "static_argnums": tuple(i + 1 if i >= 0 else i for i in numbers),  # two trees of state stand for `self`
    }


def _planned(fn: Callable, memory: PlanOnce, variables, rngs, static_argnums: tuple[int, ...]) -> Callable:
    """The lifted transformation: state goes in and comes out as arguments and results of the planned function."""

    def inner(scope_fn, repack_fn, variable_groups, rng_groups, *args, **kwargs):
        @functools.wraps(fn)
        def pure(variable_groups, rng_groups, *args, **kwargs):
            scope = scope_fn(variable_groups, rng_groups)
            return fn(scope, *args, **kwargs), repack_fn(scope)

        return memory.decorate(pure, static_argnums=static_argnums)(variable_groups, rng_groups, *args, **kwargs)

    return lift.pack(inner, (variables,), (variables,), (rngs,), name="remat", enable_kwargs=True)


def _named_as(planned: Any, target: Any) -> Any:
    """Flax names unnamed submodules after their class: the planned class bears the same name."""
    cls = planned.func if isinstance(planned, functools.partial) else planned
    original = target.func if isinstance(target, functools.partial) else target
    if isinstance(cls, type):
        for attribute in ("__name__", "__qualname__", "__module__", "__doc__"):
            setattr(cls, attribute, getattr(original, attribute))
    return planned
