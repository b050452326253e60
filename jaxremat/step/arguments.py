"""What a step is called with, as `jax.jit` sees it: arrays by path, donated or not, apart from what is static."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import NamedSharding, SingleDeviceSharding

from jaxremat.base import compat
from jaxremat.base.errors import ArgumentError
from jaxremat.base.near_miss import did_you_mean
from jaxremat.trace.arguments import opaque
from jaxremat.trace.nnx_state import call_without_changes

Where = int | str
"""A positional argument, or a keyword."""

KeyPath = Sequence[Any]
"""Keys of a tree, from its root to a leaf."""

IsHostMemory = Callable[[str | None], bool]
"""Whether a kind of memory is the host's; see `Device.is_host_memory`."""


def paths_in_tree(tree: Any) -> list[KeyPath]:
    """The path of each leaf."""
    return [path for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where a leaf lies; that of one device's own memory, or nobody knows where, is false.

    Attributes:
      sharding: over a mesh, or None.
      host_memory: the kind of the host's memory in which it lies, or None.
    """

    sharding: NamedSharding | None = None
    host_memory: str | None = None

    def __bool__(self) -> bool:
        return self.on_host or self.sharding is not None

    @property
    def on_host(self) -> bool:
        return self.host_memory is not None

    @staticmethod
    def of(leaf: Any, is_host_memory: IsHostMemory) -> Placement:
        """Of an array, a shape or a tracer, which tells no sharding."""
        if isinstance(leaf, jax.core.Tracer):
            return Placement(None, compat.HOST_MEMORY if compat.is_in_host_memory(jax.typeof(leaf)) else None)
        return Placement.by(getattr(leaf, "sharding", None), is_host_memory)

    @staticmethod
    def by(sharding: Any, is_host_memory: IsHostMemory) -> Placement:
        """That of a sharding."""
        mesh = sharding if isinstance(sharding, NamedSharding) else None
        kind = getattr(sharding, "memory_kind", None)
        return Placement(mesh, kind if is_host_memory(kind) else None)


@dataclasses.dataclass(frozen=True, eq=False)
class StepCall:
    """The arguments of one call.

    Attributes:
      leaves: arrays, tracers or shapes that are traced, in order.
      static: static arguments.
      tree: from `leaves` to (args, kwargs); other values that are not traced are part of it.
      names: path of each leaf, such as `state/params/w`.
      donated: whether each leaf's buffer may be used for a result.
      placements: where each leaf lies.
    """

    leaves: tuple[Any, ...]
    static: tuple[Any, ...]
    tree: Any
    names: tuple[str, ...]
    donated: tuple[bool, ...]
    placements: tuple[Placement, ...]
    rebuild: Callable[[Sequence[Any]], tuple[tuple[Any, ...], dict[Any, Any]]]

    @functools.cached_property
    def shapes(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """The leaves, abstract, with their shardings."""
        return tuple(map(_shape, self.leaves, self.placements))

    @property
    def avals(self) -> tuple[Any, ...]:
        """The leaves as a trace sees them, in the memory where they lie."""
        pairs = zip(self.shapes, self.placements, strict=True)
        return tuple(compat.in_host_memory(shape) if placement.on_host else shape for shape, placement in pairs)

    @property
    def shardings(self) -> tuple[NamedSharding | None, ...]:
        """Of each leaf over a mesh, or None."""
        return tuple(placement.sharding for placement in self.placements)

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for calls that one plan serves."""
        types = ((s.shape, s.dtype, s.weak_type, *compat.placement(jax.typeof(s)).values()) for s in self.shapes)
        return self.tree, self.static, tuple(types), self.placements

    def require_values(self) -> None:
        """Raises ArgumentError for a leaf that can be changed in place: what runs again would change it again."""
        refs = (name for name, leaf in zip(self.names, self.leaves, strict=True) if compat.is_ref(jax.typeof(leaf)))
        if name := next(refs, None):
            raise ArgumentError(
                f"{name} is a jax.Ref, which a planned step takes no argument of: pass its value, and return the new"
                " one; donated, it is updated in place. A Ref that the step closes over or makes is taken."
            )

    def require_pinned(self) -> None:
        """Raises ArgumentError for donated leaves in memory of the host that is not pinned: JAX gives out pinned
        arrays, and ends the process where one takes over such a buffer."""
        rows = zip(self.names, self.donated, self.placements, strict=True)
        paged = [name for name, donated, where in rows if donated and where.host_memory == compat.PAGED_HOST_MEMORY]
        if paged:
            raise ArgumentError(
                f"{paged[0]} is donated and lies in memory of kind {compat.PAGED_HOST_MEMORY!r}, which no result can"
                f" take over: pin it, jax.device_put(leaf, leaf.sharding.with_memory_kind({compat.HOST_MEMORY!r}))"
            )

    def bind(self, fun: Callable[..., Any]) -> Callable[..., Any]:
        """`fun` as a function of the leaves."""

        def bound(*leaves: Any) -> Any:
            args, kwargs = self.rebuild(leaves)
            return call_without_changes(fun, args, kwargs)

        return bound


class StepArguments:
    """How the arguments of a function are meant.

    Args:
      fun: the function.
      is_host_memory: which kinds of memory are the host's.
      donate_argnums, donate_argnames, static_argnums, static_argnames: as in `jax.jit`.
      paths_of: from a tree to the path of each leaf by which people know it.

    Raises:
      ArgumentError: for numbers and names that the function does not have.
    """

    def __init__(
        self,
        fun: Callable[..., Any],
        is_host_memory: IsHostMemory,
        donate_argnums: Any,
        donate_argnames: Any,
        static_argnums: Any,
        static_argnames: Any,
        paths_of: Callable[[Any], Sequence[KeyPath]] = paths_in_tree,
    ) -> None:
        self._paths_of = paths_of
        self._parameters, self._positional = _parameters(fun)
        self.placement = functools.partial(Placement.of, is_host_memory=is_host_memory)
        self._donated = self._resolved(donate_argnums, donate_argnames, "donate")
        self._static = self._resolved(static_argnums, static_argnames, "static")
        if both := sorted(map(str, self._donated & self._static)):
            raise ArgumentError(f"arguments {', '.join(both)} are both static and donated: static ones have no buffer")

    def call(self, args: Sequence[Any], kwargs: Mapping[Any, Any]) -> StepCall:
        """What a call consists of.

        Raises:
          ArgumentError: for static arguments that cannot be hashed.
        """
        whole = self.opaque(args, kwargs)
        flat, tree = jax.tree.flatten(whole)
        paths = self._paths_of(whole)
        where = [path[1].idx if path[0].idx == 0 else path[1].key for path in paths]
        is_static = [self._meant(place, self._static, len(args)) for place in where]
        traced = [k for k, static in enumerate(is_static) if not static]
        leaves = tuple(flat[k] for k in traced)
        given = {**dict(enumerate(args)), **kwargs}
        fixed = {place: value for place, value in given.items() if self._meant(place, self._static, len(args))}
        self._require_hashable(fixed)

        def rebuild(new: Sequence[Any]) -> tuple[tuple[Any, ...], dict[Any, Any]]:
            all_leaves = list(flat)
            for k, leaf in zip(traced, new, strict=True):
                all_leaves[k] = leaf
            return jax.tree.unflatten(tree, all_leaves)

        return StepCall(
            leaves=leaves,
            static=tuple(fixed.values()),
            tree=tree,
            names=tuple(self._name(paths[k], where[k]) for k in traced),
            donated=tuple(self._meant(where[k], self._donated, len(args)) for k in traced),
            placements=tuple(map(self.placement, leaves)),
            rebuild=rebuild,
        )

    def opaque(self, args: Sequence[Any], kwargs: Mapping[Any, Any]) -> tuple[tuple[Any, ...], dict[Any, Any]]:
        """A call whose leaves that are neither arrays nor numbers, such as the functions in a module of Equinox, are
        part of its structure; static arguments stay as they are."""
        kept = lambda place, value: value if self._meant(place, self._static, len(args)) else opaque(value)
        return tuple(kept(i, arg) for i, arg in enumerate(args)), {name: kept(name, kwargs[name]) for name in kwargs}

    def _name(self, path: KeyPath, where: Where) -> str:
        first = self._parameters[where] if isinstance(where, int) and where < len(self._parameters) else str(where)
        rest = jax.tree_util.keystr(tuple(path[2:]), simple=True, separator="/")
        return f"{first}/{rest}" if rest else first

    def _meant(self, where: Where, chosen: set[Where], number: int) -> bool:
        return where in chosen or (isinstance(where, int) and where - number in chosen)

    def _resolved(self, numbers: Any, names: Any, role: str) -> set[Where]:
        """Argument numbers and names; where only one kind is given, the other follows from it, as in `jax.jit`."""
        given_names = (names,) if isinstance(names, str) else tuple(names or ())
        self._require_known(given_names, role)
        given_numbers = self._numbers(numbers, role)
        if not given_names:
            given_names = tuple(self._positional[n] for n in given_numbers if 0 <= n < len(self._positional))
        elif not given_numbers:
            given_numbers = tuple(self._positional.index(name) for name in given_names if name in self._positional)
        return {*given_numbers, *given_names}

    def _numbers(self, numbers: Any, role: str) -> tuple[int, ...]:
        given = (numbers,) if hasattr(numbers, "__index__") else numbers or ()
        try:
            wanted = tuple(map(operator.index, given))
        except TypeError:
            error = ArgumentError(f"{role}_argnums={numbers!r} must be numbers of arguments, such as 0 or (0, 1)")
            raise error from None
        most = len(self._parameters)
        bad = [n for n in wanted if most and not self._is_variadic and not -most <= n < most]
        if bad:
            raise ArgumentError(
                f"{role}_argnums names argument {bad[0]}, but the function takes {most}: {', '.join(self._parameters)}"
            )
        return tuple(n % most if most and n < 0 and not self._is_variadic else n for n in wanted)

    def _require_known(self, names: Iterable[str], role: str) -> None:
        for name in names:
            if name not in self._parameters and not self._is_variadic:
                hint = did_you_mean(name, self._parameters)
                raise ArgumentError(
                    f"{role}_argnames names {name!r}, but the function takes {', '.join(self._parameters)}.{hint}"
                )

    @functools.cached_property
    def _is_variadic(self) -> bool:
        return "*" in self._parameters

    def _require_hashable(self, static: Mapping[Where, Any]) -> None:
        for place, value in static.items():
            try:
                hash(value)
            except TypeError:
                name = self._parameters[place] if isinstance(place, int) and place < len(self._parameters) else place
                raise ArgumentError(
                    f"static argument {name!r} is a {type(value).__name__}, which cannot be hashed, so that calls"
                    " cannot be told apart by it: pass a tuple, a string, a frozen dataclass, or leave it traced"
                ) from None


def _shape(leaf: Any, placement: Placement) -> jax.ShapeDtypeStruct:
    """The leaf, abstract: over a mesh by its type, where the call is traced, or as it is placed."""
    aval: Any = jax.typeof(leaf)
    typed = compat.placement(aval)
    if placement.sharding is not None:
        typed["sharding"] = placement.sharding
    elif placement.on_host:
        typed["sharding"] = SingleDeviceSharding(jax.devices()[0], memory_kind=compat.HOST_MEMORY)
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=bool(getattr(aval, "weak_type", False)), **typed)


def _parameters(fun: Callable[..., Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of a function's parameters, a star for those that take any number; and those that may be positional."""
    try:
        parameters = tuple(inspect.signature(fun).parameters.values())
    except (TypeError, ValueError):
        return ("*",), ()
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = tuple("*" if p.kind in variadic else p.name for p in parameters)
    return names, tuple(p.name for p in parameters if p.kind in positional)
