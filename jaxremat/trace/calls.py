"""Calls of functions with Python numbers: traced, as `jax.jit` does it, where the function lets them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from jaxremat.trace import jaxpr as jaxprs
from jaxremat.trace.activity import has_reverse_mode
from jaxremat.trace.arguments import ASKS_FOR_A_NUMBER, Call, call_of


def called(
    fun: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[Any, Any], argnums: int | Sequence[int] = ()
) -> Call:
    """The call of a function, its Python numbers traced where it lets them, otherwise static."""
    traced = call_of(args, kwargs, argnums)
    static = call_of(args, kwargs, argnums, numbers=False)
    has_numbers = len(jax.tree.leaves(traced.arrays)) > len(jax.tree.leaves(static.arrays))
    return static if has_numbers and not _may_be_traced(fun, traced) else traced


def _may_be_traced(fun: Callable[..., Any], call: Call) -> bool:
    """Whether a function neither asks what its numbers are, nor loses its gradient: a loop of so many steps would."""
    try:
        jaxpr = jaxprs.read(call.bind(fun), *call.arrays).jaxpr
    except ASKS_FOR_A_NUMBER:
        return False
    return has_reverse_mode(jaxpr, [True] * len(jaxpr.invars))
