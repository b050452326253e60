"""A call of a decorated function: which of its leaves are traced, what its program depends on, and the program."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import jax

from jaxremat.base import compat
from jaxremat.planning.placement import shardings_of
from jaxremat.planning.static_arguments import Fixed
from jaxremat.planning.trace_key import Unknown, captured_by, key_of
from jaxremat.trace.activity import has_reverse_mode
from jaxremat.trace.arguments import ASKS_FOR_A_NUMBER, traced_leaves
from jaxremat.trace.primal import Primal, mesh_sharding, read_primal


@dataclasses.dataclass(frozen=True, eq=False)
class TracedCall:
    """A call of a function, with some of its leaves traced.

    Attributes:
      fun: the function.
      leaves, tree: its arguments, a pair of positional and named ones.
      shardings: where each leaf is said to be.
      traced: whether each leaf is traced.
    """

    fun: Callable[..., Any]
    leaves: Sequence[Any]
    tree: Any
    shardings: Sequence[Any]
    traced: Sequence[bool]

    @property
    def arrays(self) -> list[Any]:
        """The traced leaves."""
        return [leaf for leaf, traced in zip(self.leaves, self.traced) if traced]

    @property
    def key(self) -> Hashable | None:
        """What the program of the call depends on; None where that is not known."""
        try:
            leaves = zip(self.leaves, self.traced)
            described = tuple(_abstract(leaf) if traced else key_of(_freed(leaf)) for leaf, traced in leaves)
            key = key_of(self.fun), described, tuple(self.shardings), self.tree, compat.trace_context()
            hash(key)
        except (Unknown, TypeError):
            return None
        return key

    def of_arrays(self, *arrays: Any) -> Any:
        """The function of its traced leaves."""
        given = iter(arrays)
        full = [next(given) if traced else _freed(leaf) for leaf, traced in zip(self.leaves, self.traced)]
        args, kwargs = jax.tree.unflatten(self.tree, full)
        return self.fun(*args, **kwargs)

    def primal(self, has_aux: bool) -> Primal:
        """The program, whose arguments are where they are said to be; otherwise where they say themselves."""
        primal = read_primal(self.of_arrays, self.arrays, None, has_aux)
        said = [sharding for sharding, traced in zip(self.shardings, self.traced) if traced]
        given = [None] * len(primal.captured) + said
        return dataclasses.replace(primal, shardings=tuple(s or own for s, own in zip(given, primal.shardings)))

    def holds_all(self, primal: Primal) -> bool:
        """Whether all arrays that entered the program are held by the function itself, where a key sees them."""
        known = {id(array) for array in captured_by(self.fun)}
        return all(id(x) in known for x in (*primal.captured, *compat.consts_of(primal.jaxpr)))


def calls_of(fun: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[Any, Any], placed: Any) -> list[TracedCall]:
    """The ways to trace a call, the first that works to be taken: with Python numbers traced, and with them static."""
    given = tuple(args), dict(kwargs)
    leaves, tree = jax.tree.flatten(given)
    ways = [traced_leaves(given, numbers) for numbers in ((int, float, complex), ())]
    shardings = shardings_of(placed, given)
    return [TracedCall(fun, leaves, tree, shardings, way) for way in (ways if ways[0] != ways[1] else ways[:1])]


def first_that_traces(calls: Sequence[TracedCall], has_aux: bool) -> tuple[TracedCall, Primal]:
    """The first call whose function does not ask what its numbers are, nor loses its gradient by tracing them."""
    *tried, last = calls
    for call in tried:
        try:
            primal = call.primal(has_aux)
        except ASKS_FOR_A_NUMBER:
            continue
        if has_reverse_mode(primal.jaxpr, [True] * len(primal.jaxpr.invars)):
            return call, primal
    return last, last.primal(has_aux)


def _freed(leaf: Any) -> Any:
    return leaf.value if isinstance(leaf, Fixed) else leaf


def _abstract(leaf: Any) -> Hashable:
    return jax.typeof(leaf), mesh_sharding(leaf)
