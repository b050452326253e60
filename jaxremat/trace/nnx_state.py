"""Modules of Flax NNX among arguments: what a call changes in them is changed outside the traced program, too.

Used where Flax is loaded; nothing here loads it.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax

from jaxremat.base.errors import EmissionError

_TAG = "jaxremat"
_STORED = (jax.tree_util.GetAttrKey("states"), jax.tree_util.SequenceKey(0))  # flax/nnx/extract.py: NodeStates


def holds_modules(tree: Any) -> bool:
    """Whether a tree holds modules or variables of Flax NNX."""
    nnx = sys.modules.get("flax.nnx")
    if nnx is None:
        return False
    is_stateful = lambda x: isinstance(x, nnx.Variable | nnx.Pytree)
    return any(map(is_stateful, jax.tree.leaves(tree, is_leaf=is_stateful)))


def call_without_changes(fun: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[Any, Any]) -> Any:
    """What a function of trees returns.

    Raises:
      EmissionError: where it changes the state of a module among its arguments, and does not return it: arguments are
        copies, and the change would be lost.
    """
    if not holds_modules((args, kwargs)):
        return fun(*args, **kwargs)
    before = _leaves_by_path((args, kwargs))
    out = fun(*args, **kwargs)
    after = _leaves_by_path((args, kwargs))
    returned = set(map(id, jax.tree.leaves(out)))
    changed = [path for path in {**before, **after} if before.get(path) is not after.get(path)]
    lost = [path for path in changed if id(after.get(path)) not in returned]
    if lost:
        raise _lost(f"the state at {', '.join(lost[:3])} of a module among its arguments")
    return out


@contextlib.contextmanager
def naming_what_is_closed_over() -> Iterator[None]:
    """Where a function that is traced changes a module that it closes over, Flax's error becomes one with a remedy.

    Raises:
      EmissionError: in its place.
    """
    flax_errors = sys.modules.get("flax.errors")
    refused = () if flax_errors is None else flax_errors.TraceContextError
    try:
        yield
    except refused as error:
        raise _lost(f"a module that it closes over ({str(error).split(' (http')[0]})") from error


def _leaves_by_path(tree: Any) -> dict[str, Any]:
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _lost(what: str) -> EmissionError:
    return EmissionError(
        f"the function changes {what}, and the change would be lost. Decorate a function that takes the module as an"
        " argument with jaxremat.nnx.remat, or a step with jaxremat.nnx.jit, which carry its state; or split it with"
        " flax.nnx.split, merge it inside with copy=True, and return the module, or its new state: from a loss as"
        " auxiliary data, from a step as a result."
    )


def with_owner_as_argument(fun: Callable[..., Any]) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """A function and the arguments to put first: a module that is called, or whose method `fun` is, is an argument."""
    owner = fun.__self__ if inspect.ismethod(fun) else fun
    if not holds_modules(owner):
        return fun, ()
    return (fun.__func__ if inspect.ismethod(fun) else type(owner).__call__), (owner,)


def carrying_state(
    fun: Callable[..., Any], transform: Callable[[Callable[..., Any]], Callable[..., Any]], has_aux: bool = False
) -> Callable[..., Any]:
    """`transform(fun)`, for a transform of functions of arrays and a function whose arguments hold modules.

    Args:
      fun: the function.
      transform: receives `fun` as a function of trees; the state of modules is part of what it takes and returns,
        with auxiliary results where there are such.
      has_aux: whether `fun` returns (result, auxiliary data).

    Returns:
      A function of (placed, *args, **kwargs), as the transformed ones are.
    """
    nnx = sys.modules["flax.nnx"]
    general = nnx.transforms.general

    @functools.wraps(fun)
    def pure(args: Any, kwargs: Any) -> Any:
        (args, kwargs), out = merged(args, kwargs)
        return (out[0], (out[1], args, kwargs)) if has_aux else (out, args, kwargs)

    merged = general.merge_inputs(lambda args, kwargs: fun(*args, **kwargs), ctxtag=_TAG)
    transformed = transform(pure)

    def of_trees(placed: Any, args: Any, kwargs: Any) -> Any:
        out, *state = transformed((placed(), None), args, kwargs)
        if has_aux:
            aux, *state = state[0]
            out = out, aux
        return (None, *state), out

    @functools.wraps(fun)
    def stateful(placed: Any, /, *args: Any, **kwargs: Any) -> Any:
        split = general.split_inputs(of_trees, ctxtag=_TAG)
        return nnx.update_context(_TAG)(split)(lambda: placed, args, kwargs)

    return stateful


def of_trees(fun: Callable[..., Any]) -> Callable[..., Any]:
    """A function whose arguments hold modules as one of trees, called by `with_modules`: from what the modules hold to
    what they hold afterwards, and its result."""
    general = sys.modules["flax.nnx"].transforms.general
    merged = general.merge_inputs(lambda args, kwargs: fun(*args, **kwargs), ctxtag=_TAG)

    @functools.wraps(fun)
    def pure(*args: Any, **kwargs: Any) -> Any:
        return merged(args, kwargs)

    return pure


def with_modules(pure: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[Any, Any]) -> Any:
    """Calls what `of_trees` made, or a transform of it, with arguments that hold modules; these change as `fun` would
    change them."""
    nnx = sys.modules["flax.nnx"]
    split = nnx.transforms.general.split_inputs(lambda args, kwargs: pure(*args, **kwargs), ctxtag=_TAG)
    return nnx.update_context(_TAG)(split)(tuple(args), dict(kwargs))


def shown(path: Sequence[Any]) -> Sequence[Any]:
    """The path of a leaf in such trees as one in the module: without the keys of what Flax stores it in."""
    kept = list(path)
    for place in range(len(kept) - 1):
        if tuple(kept[place : place + 2]) == _STORED:
            end = len(kept) - (kept[-1] == jax.tree_util.GetAttrKey("value"))
            return [*kept[:place], *kept[place + 2 : end]]
    return kept
