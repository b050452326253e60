"""Where the arguments of a decorated function are, over the devices of a mesh."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec, Sharding

from jaxremat.base.errors import ArgumentError


def per_argument(in_shardings: Any, args: Sequence[Any], is_static: Callable[[Any], bool]) -> Any:
    """`in_shardings`, which leaves static arguments out, as a prefix of all the arguments."""
    if not isinstance(in_shardings, tuple | list) or len(in_shardings) != sum(not is_static(arg) for arg in args):
        return tuple(in_shardings) if isinstance(in_shardings, list) else in_shardings
    given = iter(in_shardings)
    return tuple(None if is_static(arg) else next(given) for arg in args)


def shardings_of(prefix: Any, tree: Any) -> list[Sharding | None]:
    """One sharding per leaf of a tree, from a prefix of it as `jax.jit` takes for `in_shardings`.

    Args:
      prefix: shardings, partition specs over the mesh that is set, or None where nothing is said.
      tree: the arguments.

    Raises:
      ArgumentError: where the prefix does not fit the arguments.
    """
    try:
        spread = jax.tree.broadcast(prefix, jax.tree.map(lambda _: 0, tree), is_leaf=_is_placement)
    except ValueError as error:
        raise ArgumentError(f"in_shardings does not fit the arguments: {error}") from error
    return [_over_mesh(sharding) for sharding in jax.tree.leaves(spread, is_leaf=_is_placement)]


def _is_placement(x: Any) -> bool:
    return x is None or isinstance(x, Sharding | PartitionSpec)


def devices_of_mesh() -> int:
    """How many devices the mesh that is set has along axes that are not manual; 1 where none is set."""
    mesh = jax.sharding.get_abstract_mesh()
    kinds = dict(zip(mesh.axis_names, mesh.axis_types))
    return math.prod(size for name, size in mesh.shape.items() if kinds[name] != AxisType.Manual)


def _over_mesh(sharding: Any) -> Sharding | None:
    if isinstance(sharding, PartitionSpec):
        return NamedSharding(jax.sharding.get_abstract_mesh(), sharding)
    return sharding
