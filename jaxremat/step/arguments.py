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
      leaves: arrays, tracers, shapes or `jax.Ref`s that are traced, in order. To a plan a Ref is the value that it
        holds: one leaf of the step, and one more result, which goes into its buffer.
      static: static arguments.
      tree: from `leaves` to (args, kwargs); other values that are not traced are part of it.
      names: path of each leaf, such as `state/params/w`.
      donated: whether each leaf's buffer may be used for a result; that of a Ref always is.
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
    def refs(self) -> tuple[int, ...]:
        """The leaves that are `jax.Ref`s."""
        return tuple(k for k, leaf in enumerate(self.leaves) if compat.is_ref(jax.typeof(leaf)))

    @property
    def values(self) -> tuple[Any, ...]:
        """The leaves, with what Refs hold in their place."""
        return tuple(leaf[...] if k in self.refs else leaf for k, leaf in enumerate(self.leaves))

    @functools.cached_property
    def shapes(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """The leaves, abstract, with their shardings."""
        return tuple(map(_shape, self.leaves, self.placements))

    @property
    def abstract(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """The leaves, abstract, Refs as Refs."""
        return tuple(compat.as_ref(shape) if k in self.refs else shape for k, shape in enumerate(self.shapes))

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
        return self.tree, self.static, tuple(types), self.placements, self.refs

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
        """`fun` as a function of the values; where there are Refs, it returns what they hold in the end, too."""

        def bound(*values: Any) -> Any:
            leaves = [jax.new_ref(value) if k in self.refs else value for k, value in enumerate(values)]
            args, kwargs = self.rebuild(leaves)
            out = call_without_changes(fun, args, kwargs)
            return (out, [jax.freeze(leaves[k]) for k in self.refs]) if self.refs else out

        return bound

    def result(self, returned: Any) -> Any:
        """The step's own part of what `bind(fun)` returns."""
        return returned[0] if self.refs else returned

    def completed(self, returned: Any) -> Any:
        """The same, once the Refs of this call hold what they hold in the end."""
        if self.refs:
            for k, value in zip(self.refs, returned[1], strict=True):
                self.leaves[k][...] = value
        return self.result(returned)


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
        self._parameters = _Parameters.of(fun)
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
            donated=tuple(
                self._meant(where[k], self._donated, len(args)) or compat.is_ref(jax.typeof(flat[k])) for k in traced
            ),
            placements=tuple(map(self.placement, leaves)),
            rebuild=rebuild,
        )

    def opaque(self, args: Sequence[Any], kwargs: Mapping[Any, Any]) -> tuple[tuple[Any, ...], dict[Any, Any]]:
        """A call whose leaves that are neither arrays nor numbers, such as the functions in a module of Equinox, are
        part of its structure; static arguments stay as they are."""
        kept = lambda place, value: value if self._meant(place, self._static, len(args)) else opaque(value)
        return tuple(kept(i, arg) for i, arg in enumerate(args)), {name: kept(name, kwargs[name]) for name in kwargs}

    def _name(self, path: KeyPath, where: Where) -> str:
        first = str(self._parameters.name(where))
        rest = jax.tree_util.keystr(tuple(path[2:]), simple=True, separator="/")
        return f"{first}/{rest}" if rest else first

    def _meant(self, where: Where, chosen: set[Where], number: int) -> bool:
        return where in chosen or (isinstance(where, int) and where - number in chosen)

    def _resolved(self, numbers: Any, names: Any, role: str) -> set[Where]:
        """Argument numbers and names; where only one kind is given, the other follows from it, as in `jax.jit`."""
        given_names = self._names(names, role)
        given_numbers = self._numbers(numbers, role)
        positional = self._parameters.positional
        if not given_names:
            given_names = tuple(positional[n] for n in given_numbers if 0 <= n < len(positional))
        elif not given_numbers:
            given_numbers = tuple(positional.index(name) for name in given_names if name in positional)
        return {*given_numbers, *given_names}

    def _numbers(self, numbers: Any, role: str) -> tuple[int, ...]:
        given = (numbers,) if hasattr(numbers, "__index__") else numbers or ()
        try:
            wanted = tuple(map(operator.index, given))
        except TypeError:
            error = ArgumentError(f"{role}_argnums={numbers!r} must be numbers of arguments, such as 0 or (0, 1)")
            raise error from None
        if self._parameters.takes_more_positions:
            return wanted
        most = len(self._parameters.positional)
        bad = [n for n in wanted if not -most <= n < most]
        if bad:
            taken = ", ".join(self._parameters.positional) or "none"
            raise ArgumentError(f"{role}_argnums names argument {bad[0]}, but by position the function takes {taken}")
        return tuple(n % most for n in wanted)

    def _names(self, names: Any, role: str) -> tuple[str, ...]:
        given = (names,) if isinstance(names, str) else names or ()
        if not isinstance(given, Iterable) or not all(isinstance(name, str) for name in given):
            raise ArgumentError(f'{role}_argnames={names!r} must be names of arguments, such as "state" or ("a", "b")')
        wanted, known = tuple(given), self._parameters.names
        for name in wanted:
            if name not in known and not self._parameters.takes_more_names:
                hint = did_you_mean(name, known)
                raise ArgumentError(
                    f"{role}_argnames names {name!r}, but the function takes {', '.join(known) or 'none'}.{hint}"
                )
        return wanted

    def _require_hashable(self, static: Mapping[Where, Any]) -> None:
        for place, value in static.items():
            try:
                hash(value)
            except TypeError:
                name = self._parameters.name(place)
                raise ArgumentError(
                    f"static argument {name!r} is a {type(value).__name__}, which cannot be hashed, so that calls"
                    " cannot be told apart by it: pass a tuple, a string, a frozen dataclass, or leave it traced"
                ) from None


def _shape(leaf: Any, placement: Placement) -> jax.ShapeDtypeStruct:
    """The leaf, abstract: over a mesh by its type, where the call is traced, or as it is placed."""
    aval: Any = compat.held_by(jax.typeof(leaf))
    typed = compat.placement(aval)
    if placement.sharding is not None:
        typed["sharding"] = placement.sharding
    elif placement.on_host:
        typed["sharding"] = SingleDeviceSharding(jax.devices()[0], memory_kind=compat.HOST_MEMORY)
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=bool(getattr(aval, "weak_type", False)), **typed)


@dataclasses.dataclass(frozen=True)
class _Parameters:
    """What a function can be called with.

    Attributes:
      names: of its parameters, a star for those that take any number.
      positional: those that may be given by position.
      takes_more_positions, takes_more_names: whether others may be given, too.
    """

    names: tuple[str, ...] = ("*",)
    positional: tuple[str, ...] = ()
    takes_more_positions: bool = True
    takes_more_names: bool = True

    @staticmethod
    def of(fun: Callable[..., Any]) -> _Parameters:
        """Those of a function; what tells nothing takes everything."""
        try:
            parameters = tuple(inspect.signature(fun).parameters.values())
        except (TypeError, ValueError):
            return _Parameters()
        variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        more_positions, more_names = (any(p.kind == kind for p in parameters) for kind in variadic)
        return _Parameters(
            tuple("*" if p.kind in variadic else p.name for p in parameters),
            tuple(p.name for p in parameters if p.kind in by_position),
            more_positions,
            more_names,
        )

    def name(self, where: Where) -> Where:
        """Of an argument by position; where it has none, its number."""
        return self.positional[where] if isinstance(where, int) and where < len(self.positional) else where
