"""What functions take and return: arrays, which are traced, apart from everything else, which is static.

Flags, counts, names, activation functions and whole configuration objects may be leaves of arguments and of results,
as they are of Equinox modules: the traced program never sees them, and they come back as they went in.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
import sys
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxremat.base.errors import ArgumentError
from jaxremat.trace.nnx_state import call_without_changes


def is_array(leaf: Any) -> bool:
    """Whether a leaf is traced: an array, a shape that stands for one, or a `jax.Ref`."""
    if isinstance(leaf, type):
        return False
    if isinstance(leaf, np.ndarray | np.generic):
        return jnp.issubdtype(leaf.dtype, np.number) or jnp.issubdtype(leaf.dtype, np.bool_)
    return (hasattr(leaf, "dtype") and hasattr(leaf, "shape")) or hasattr(leaf, "__jax_array__")


def traced_leaves(tree: Any, numbers: tuple[type, ...]) -> list[bool]:
    """Which leaves of a tree of arguments are traced: arrays, and numbers of some Python types.

    Numbers that are fields of modules are not: how deep, how wide, how often is what they are there to say.
    """
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    plain = jax.tree_util.SequenceKey | jax.tree_util.DictKey
    own = [all(isinstance(key, plain) for key in path) for path, _ in flat]
    return [is_array(leaf) or (free and type(leaf) in numbers) for (_, leaf), free in zip(flat, own)]


NUMBERS = (bool, int, float, complex)
"""What `jax.jit` traces beside arrays."""
ASKS_FOR_A_NUMBER = (TypeError, IndexError)
"""What a function raises that is given a tracer and needs a number: which branch, how many, what shape, up to where."""


@jax.tree_util.register_pytree_node_class
class Opaque:
    """Anything, as a node without leaves: a tree that holds it unflattens to one that holds the thing itself."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def tree_flatten(self) -> Any:
        return (), Static(self.value)

    @classmethod
    def tree_unflatten(cls, static: Any, _: Any) -> Any:
        return static.value


@dataclasses.dataclass(frozen=True, eq=False)
class Same:
    """Anything, compared by identity."""

    value: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


@dataclasses.dataclass(frozen=True, eq=False)
class Static:
    """Anything, equal to another where programs with either are alike; what cannot be hashed is like itself alone."""

    value: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Static) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    @property
    def _key(self) -> Hashable:
        if type(self.value) in NUMBERS:
            return type(self.value), repr(self.value)  # the sign of zero counts
        try:
            hash(self.value)
        except TypeError:
            return Same(self.value)
        return type(self.value), self.value


def is_traced_by_jit(leaf: Any) -> bool:
    """Whether `jax.jit` takes a leaf: an array or a number."""
    return is_array(leaf) or type(leaf) in NUMBERS


def opaque(tree: Any) -> Any:
    """The tree with everything static as part of its structure: what `jax.jit` does not take; and in modules of Equinox
    numbers, too, since its `filter_jit` traces arrays only, and what counts as a parameter hangs on it."""
    modules = _module_types()
    is_module = lambda x: isinstance(x, modules)
    fixed = lambda leaf, is_traced: leaf if is_traced(leaf) else Opaque(leaf)
    of_module = lambda module: jax.tree.map(lambda leaf: fixed(leaf, is_array), module)
    of_node = lambda node: of_module(node) if is_module(node) else fixed(node, is_traced_by_jit)
    return jax.tree.map(of_node, tree, is_leaf=is_module)


def may_hold_static_numbers(tree: Any) -> bool:
    """Whether numbers in a tree may be static; quick to say no."""
    return bool(_module_types()) and any(type(leaf) in NUMBERS for leaf in jax.tree.leaves(tree))


def _module_types() -> tuple[type, ...]:
    """What Equinox calls a module, where it is loaded."""
    module = getattr(sys.modules.get("equinox"), "Module", None)
    return () if module is None else (module,)


def arrays_and_tree(tree: Any) -> tuple[list[Any], Any]:
    """(the arrays of a tree, its structure, from which `jax.tree.unflatten` makes the tree with all that is static)."""
    return jax.tree.flatten(jax.tree.map(lambda leaf: leaf if is_array(leaf) else Opaque(leaf), tree))


def arrays_only(fun: Callable[..., Any]) -> Callable[..., Any]:
    """`fun` with None for what is static in its results."""

    @functools.wraps(fun)
    def returning_arrays(*args: Any, **kwargs: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf if is_array(leaf) else None, fun(*args, **kwargs))

    return returning_arrays


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """What a function is called with, as trees of arrays.

    Attributes:
      arrays: the positional arguments, with None for what is static in them; then, where there are any, one dictionary
        of the arrays that come by keyword, and of those among differentiated arguments that have no gradient.
      rebuild: from such trees to (args, kwargs).
    """

    arrays: tuple[Any, ...]
    rebuild: Callable[..., tuple[Sequence[Any], Mapping[Any, Any]]]

    def bind(self, fun: Callable[..., Any]) -> Callable[..., Any]:
        """`fun` as a function of `arrays`."""

        @functools.wraps(fun)
        def bound(*arrays: Any) -> Any:
            args, kwargs = self.rebuild(*arrays)
            return call_without_changes(fun, args, kwargs)

        return bound


def call_of(
    args: Sequence[Any], kwargs: Mapping[Any, Any], argnums: int | Sequence[int] = (), numbers: bool = True
) -> Call:
    """The call of a function, its arrays apart.

    Args:
      args, kwargs: what it is called with.
      argnums: which positional arguments are differentiated.
      numbers: whether Python numbers are traced, as `jax.jit` does; otherwise they are static.
    """
    traced = traced_leaves((tuple(args), dict(kwargs)), NUMBERS if numbers else ())
    flat, tree = jax.tree_util.tree_flatten_with_path((tuple(args), dict(kwargs)))
    leaves = [leaf for _, leaf in flat]
    paths = [jax.tree_util.keystr(path[1:], simple=True, separator="/") for path, _ in flat]
    arrays = [k for k, is_traced in enumerate(traced) if is_traced]
    aside = {paths[k]: k for k in _aside(flat, arrays, argnums, len(args))}
    in_place = [k for k in arrays if k not in aside.values()]
    order = [*in_place, *(aside[path] for path in sorted(aside))]
    static = [None if is_traced else leaf for leaf, is_traced in zip(leaves, traced)]

    def with_arrays(leaves: list[Any], arrays: Mapping[int, Any]) -> tuple[tuple[Any, ...], dict[Any, Any]]:
        return jax.tree.unflatten(tree, [arrays.get(k, leaf) for k, leaf in enumerate(leaves)])

    positional, _ = with_arrays([None] * len(leaves), {k: leaves[k] for k in in_place})
    extra = ({path: leaves[k] for path, k in aside.items()},) if aside else ()
    rebuild = lambda *trees: with_arrays(static, dict(zip(order, jax.tree.leaves(trees), strict=True)))
    return Call((*positional, *extra), rebuild)


def checked_argnums(argnums: int | Sequence[int], number: int) -> int | tuple[int, ...]:
    """`argnums` as `jax.grad` takes it, of a call with a number of positional arguments.

    Raises:
      ArgumentError: for what is no number of an argument.
    """
    if not number:
        raise ArgumentError("no argument is given by position: pass the function's arguments, arrays or shapes of them")
    try:
        wanted = operator.index(argnums) if hasattr(argnums, "__index__") else tuple(map(operator.index, argnums))
    except TypeError:
        wanted = ()
    numbers = (wanted,) if isinstance(wanted, int) else wanted
    if not numbers or any(not -number <= i < number for i in numbers):
        raise ArgumentError(f"argnums={argnums!r} must name arguments 0..{number - 1} of the function, by number")
    return wanted


def _aside(flat: Sequence[Any], arrays: Sequence[int], argnums: int | Sequence[int], number: int) -> list[int]:
    """Arrays that come by keyword, and those without a gradient beside differentiated ones in one argument."""
    argument = [path[1].idx if path[0].idx == 0 else None for path, _ in flat]
    smooth = {k for k in arrays if _has_gradient(flat[k][1])}
    wanted = {i % max(number, 1) for i in ((argnums,) if isinstance(argnums, int) else argnums)}
    mixed = wanted.intersection(argument[k] for k in smooth)
    return [k for k in arrays if argument[k] is None or (argument[k] in mixed and k not in smooth)]


def _has_gradient(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype if hasattr(leaf, "dtype") else jax.dtypes.result_type(leaf), jnp.inexact)
