"""Static arguments, named as `jax.jit` names them: by number or by name, however they are then given."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from inspect import Parameter
from typing import Any

from jaxremat.base.errors import ArgumentError
from jaxremat.base.near_miss import did_you_mean

_BY_POSITION = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
_BY_NAME = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)


@dataclasses.dataclass(frozen=True)
class Fixed:
    """A static argument, as a leaf of the tree of arguments."""

    value: object


@dataclasses.dataclass(frozen=True)
class StaticArguments:
    """Which arguments of a function are static.

    Attributes:
      numbers: by position; negative ones count from the last positional argument of a call.
      names: by keyword.
    """

    numbers: frozenset[int] = frozenset()
    names: frozenset[str] = frozenset()

    def fix(self, args: Sequence[Any], kwargs: Mapping[Any, Any]) -> tuple[list[Any], dict[Any, Any]]:
        """The arguments of a call, its static ones `Fixed`."""
        positions = {i % len(args) for i in self.numbers if i < len(args)}
        fixed = [Fixed(arg) if i in positions else arg for i, arg in enumerate(args)]
        return fixed, {name: Fixed(arg) if name in self.names else arg for name, arg in kwargs.items()}


def static_arguments(
    fun: Callable[..., Any], static_argnums: int | Sequence[int], static_argnames: str | Iterable[str]
) -> StaticArguments:
    """Static arguments of a function: each by number and by name, where its signature tells both.

    Raises:
      ArgumentError: for a number or a name that the function does not have.
    """
    numbers = _several("static_argnums", static_argnums, int)
    names = _several("static_argnames", static_argnames, str)
    try:
        parameters = inspect.signature(fun).parameters
    except (TypeError, ValueError):  # functions written in C tell nothing
        return StaticArguments(frozenset(numbers), frozenset(names))
    kinds = {parameter.kind for parameter in parameters.values()}
    positional = [name for name, parameter in parameters.items() if parameter.kind in _BY_POSITION]
    keywords = [name for name, parameter in parameters.items() if parameter.kind in _BY_NAME]
    if Parameter.VAR_POSITIONAL not in kinds:
        _require(fun, "static_argnums", numbers, range(-len(positional), len(positional)), positional)
        numbers = tuple(i % len(positional) for i in numbers)
    if Parameter.VAR_KEYWORD not in kinds:
        _require(fun, "static_argnames", names, keywords, keywords)
    return StaticArguments(
        frozenset({*numbers, *(positional.index(name) for name in names if name in positional)}),
        frozenset({*names, *(positional[i] for i in numbers if 0 <= i < len(positional))}),
    )


def _several(option: str, given: Any, kind: type) -> tuple[Any, ...]:
    items = tuple(given) if isinstance(given, Iterable) and not isinstance(given, str) else (given,)
    if not all(isinstance(item, kind) for item in items):
        raise ArgumentError(f"{option}={given!r} has to be {kind.__name__}, or several of them")
    return items


def _require(
    fun: Callable[..., Any], option: str, given: Sequence[Any], known: Sequence[Any], parameters: Sequence[str]
) -> None:
    unknown = [item for item in given if item not in known]
    if unknown:
        name = getattr(fun, "__name__", type(fun).__name__)
        listed = ", ".join(f"{i}: {parameter}" for i, parameter in enumerate(parameters)) or "none"
        raise ArgumentError(
            f"{option} names {', '.join(map(repr, unknown))}, which {name} does not have; its arguments are {listed}."
            + did_you_mean(str(unknown[0]), parameters)
        )
