"""The joint graph of a function, for solvers and for those who want to look."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from jaxremat.backends.devices import resolve_target
from jaxremat.cost.pricing import price
from jaxremat.graph.graph import Graph
from jaxremat.trace.arguments import checked_argnums
from jaxremat.trace.calls import called
from jaxremat.trace.joint import trace_joint


def trace(
    fun: Callable[..., Any],
    *args: Any,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    target: str | None = None,
    **kwargs: Any,
) -> Graph:
    """The joint forward and backward graph of a function.

    Args:
      fun: any differentiable JAX function.
      args, kwargs: as in `jaxremat.plan`.
      argnums, has_aux: as in `jax.grad`.
      target: device that prices the nodes; None is the default backend's.

    Returns:
      A Graph: node i is equation i of the joint jaxpr, costs in seconds, sizes in bytes.

    Raises:
      ArgumentError: if there is nothing to differentiate, or the target is unknown.
    """
    positions = checked_argnums(argnums, len(args))
    call = called(fun, args, kwargs, positions)
    return price(trace_joint(call.bind(fun), *call.arrays, argnums=positions, has_aux=has_aux), resolve_target(target))
