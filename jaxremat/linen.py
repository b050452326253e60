"""Flax linen: a module whose gradient is planned, with the same parameters, names and state."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import flax.core.lift as lift
import flax.linen as nn
import jax

from jaxremat.base.budget import Budget
from jaxremat.planning.decorator import PlanOnce
from jaxremat.planning.static_arguments import StaticArguments, static_arguments


def remat(
    module: Any = None,
    /,
    *,
    budget: Budget | None = None,
    keep: Budget | None = None,
    variables: Any = True,
    rngs: Any = True,
    static_argnums: int | tuple[int, ...] = (),
    static_argnames: str | Iterable[str] = (),
    methods: Sequence[str] | Mapping[str, Mapping[str, Any]] | None = None,
    **options: Any,
) -> Any:
    """A module class, or a method of one, whose gradient is planned for a budget where it is differentiated.

    Parameters and their names, random streams, batch statistics, `mutable` and `sow` stay as they are without it. A
    plan is made once per program, whatever the number of instances.

    Args:
      module: a Module class, or a function that takes a Module first, such as a method; without it, a decorator.
      keep: what a call may leave behind for its backward beside its inputs, which is what `nn.remat` bounds: bytes,
        text, or a fraction of what its backward reads. 0 is full rematerialization.
      budget: instead of `keep`, as in `jaxremat.plan`, of the program of one call: it bounds its inputs, its gradients
        and what it computes. Below what is reached, it takes
        the least that its peak and what it leaves behind come to together, with a warning. A fraction is of the
        module's own gradient program.
      variables, rngs: collections and random streams to lift, as in `flax.linen.remat`.
      static_argnums: arguments that are no arrays, as in `flax.linen.remat`: `self` is number 0.
      static_argnames: the same, where they are given as keywords.
      methods: names of a class's methods to plan, `__call__` by default; or a dictionary from names to options.
      options: `solver`, `target`, `emit`, `verify` and `seed`, as in `jaxremat.remat`.

    Returns:
      What was given, planned.
    """
    common = {
        "budget": budget,
        "keep": keep,
        "variables": variables,
        "rngs": rngs,
        "static_argnums": static_argnums,
        "static_argnames": static_argnames,
        **options,
    }
    if module is None:
        return functools.partial(remat, methods=methods, **common)
    cls = _class_of(module)
    if cls is None:
        return nn.transforms.lift_transform(_planned, module, **_lifting(module, _name_of(module), **common))
    own = methods if isinstance(methods, Mapping) else {method: {} for method in methods or ("__call__",)}
    lifted = {
        method: _lifting(getattr(cls, method), _name_of(cls, method), **{**common, **own[method]}) for method in own
    }
    planned = nn.transforms.lift_transform(_planned, module, methods=lifted)
    for attribute in ("__name__", "__qualname__", "__module__", "__doc__"):  # unnamed submodules are named after these
        setattr(_class_of(planned), attribute, getattr(cls, attribute))
    return planned


def _class_of(module: Any) -> type | None:
    cls = module.func if isinstance(module, functools.partial) else module
    return cls if isinstance(cls, type) else None


def _name_of(target: Any, method: str = "__call__") -> str:
    name = getattr(target, "__name__", type(target).__name__)
    return name if method == "__call__" else f"{name}.{method}"


def _lifting(
    fun: Callable[..., Any],
    name: str,
    *,
    variables: Any,
    rngs: Any,
    static_argnums: Any,
    static_argnames: Any,
    **options: Any,
) -> dict[str, Any]:
    return {
        "once": PlanOnce(name, least=True, **options),
        "variables": variables,
        "rngs": rngs,
        "static": static_arguments(fun, static_argnums, static_argnames),
    }


def _planned(
    fn: Callable[..., Any], once: PlanOnce, variables: Any, rngs: Any, static: StaticArguments
) -> Callable[..., Any]:
    """The lifted transformation: state goes in and comes out as arguments and results of the planned function."""

    def inner(scope_fn: Any, repack_fn: Any, variable_groups: Any, rng_groups: Any, *args: Any, **kwargs: Any) -> Any:
        @functools.wraps(fn)
        def pure(variable_groups: Any, rng_groups: Any, *args: Any, **kwargs: Any) -> Any:
            scope = scope_fn(variable_groups, rng_groups)
            return fn(scope, *args, **kwargs), repack_fn(scope)

        scopes = jax.tree.leaves(scope_fn(variable_groups, rng_groups))
        if any(scope.get_flag("initializing", False) for scope in scopes):  # same bits: op by op, as Flax does it
            return pure(variable_groups, rng_groups, *args, **kwargs)
        fixed, kwargs = static.fix((None, *args), kwargs)  # the numbers of static arguments count `self`
        return once.decorate(pure)(None, variable_groups, rng_groups, *fixed[1:], **kwargs)

    return lift.pack(inner, (variables,), (variables,), (rngs,), name="remat", enable_kwargs=True)
