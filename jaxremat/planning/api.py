"""The entrances that are not `plan` and `remat`: the joint graph of a function, and plans from disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from jaxremat.backends.devices import resolve_target
from jaxremat.cost.pricing import price
from jaxremat.graph.graph import Graph
from jaxremat.planning.load import restored
from jaxremat.planning.plan import Plan
from jaxremat.planning.storage import read_plan
from jaxremat.trace.arguments import called
from jaxremat.trace.joint import trace_joint


def trace(
    fun: Callable, *args, argnums: int | Sequence[int] = 0, has_aux: bool = False, target: str | None = None, **kwargs
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
    call = called(fun, args, kwargs, argnums)
    return price(trace_joint(call.bind(fun), *call.arrays, argnums=argnums, has_aux=has_aux), resolve_target(target))


def load_plan(path: str | Path, fun: Callable, *args, **kwargs) -> Plan:
    """Reads a plan that `Plan.save` wrote, for the function that it was made for. Traces it, but solves nothing.

    Args:
      path: the file.
      fun: the function that was planned.
      args, kwargs: arguments of the planned shapes: arrays or ShapeDtypeStructs, in trees.

    Raises:
      PlanMismatchError: if the file is damaged, or the function or its arguments have changed; with the difference.
    """
    return restored(read_plan(path), fun, args, kwargs)
