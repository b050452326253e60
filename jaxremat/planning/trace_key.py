"""What a function's traced program depends on, as a key: its code, and what it closes over.

A key exists where everything that is closed over is data, arrays, or functions of such: then the same key means the
same program. Objects that may have changed in the meantime (models that keep arrays as attributes, NumPy arrays) have
none, and the function is traced again.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Hashable
from typing import Any

import jax
import numpy as np

from jaxremat.planning.memory import Memory
from jaxremat.trace.arguments import Same


class Unknown(Exception):
    """A value may change without becoming another object."""


@functools.singledispatch
def key_of(value: Any, seen: frozenset[int] = frozenset()) -> Hashable:
    """A key of a value, or of a function with all it closes over.

    Args:
      value: anything.
      seen: identities of what `value` is held by.

    Raises:
      Unknown: if there is none.
    """
    wrapped = getattr(value, "__wrapped__", None)
    if wrapped is not None and not isinstance(value, type):
        return Same(value), _inside(value, wrapped, seen)
    if type(value).__eq__ is object.__eq__:  # type: ignore[comparison-overlap]
        raise Unknown
    try:
        hash(value)
    except TypeError as error:
        raise Unknown from error
    return type(value), value


@key_of.register(jax.Array)
@key_of.register(type)
@key_of.register(type(None))
@key_of.register(types.ModuleType)
@key_of.register(types.BuiltinFunctionType)
@key_of.register(types.MethodDescriptorType)
@key_of.register(np.ufunc)
@key_of.register(Memory)
def _(value: Any, seen: Any = frozenset()) -> Any:
    return Same(value)


@key_of.register(list)
@key_of.register(tuple)
def _(value: Any, seen: Any = frozenset()) -> Any:
    return type(value), *(_inside(value, entry, seen) for entry in value)


@key_of.register(dict)
def _(value: dict[Any, Any], seen: Any = frozenset()) -> Any:
    return dict, *((name, _inside(value, entry, seen)) for name, entry in value.items())


@key_of.register(functools.partial)
def _(value: functools.partial[Any], seen: Any = frozenset()) -> Any:
    return _inside(value, (value.func, value.args, value.keywords), seen)


@key_of.register
def _(value: types.MethodType, seen: Any = frozenset()) -> Any:
    return _inside(value, (value.__func__, value.__self__), seen)


@key_of.register
def _(value: types.FunctionType, seen: Any = frozenset()) -> Any:
    held = _closed_over(value), value.__defaults__, value.__kwdefaults__
    return Same(value.__code__), _inside(value, held, seen)


def _inside(holder: Any, value: Any, seen: frozenset[int]) -> Hashable:
    return "itself" if id(value) in seen else key_of(value, seen | {id(holder)})


def captured_by(fun: Callable[..., Any]) -> list[Any]:
    """The arrays, tracers included, that a function closes over directly or in trees."""
    inner = inspect.unwrap(fun)
    held = _closed_over(inner) if isinstance(inner, types.FunctionType) else []
    return [leaf for leaf in jax.tree.leaves(held) if isinstance(leaf, jax.Array)]


def _closed_over(fun: types.FunctionType) -> list[Any]:
    """What the cells of a function hold, and the arrays among the globals that it names."""
    try:
        cells = [cell.cell_contents for cell in fun.__closure__ or ()]
    except ValueError as error:  # a cell that is not filled yet
        raise Unknown from error
    named = [fun.__globals__.get(name) for name in fun.__code__.co_names]
    return cells + [value for value in named if isinstance(value, jax.Array)]
