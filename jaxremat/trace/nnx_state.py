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
    of_state = of_trees(fun)

    @functools.wraps(fun)
    def pure(args: Any, kwargs: Any) -> Any:
        state, out = of_state(*args, **kwargs)
        return (out[0], (out[1], state)) if has_aux else (out, state)

    transformed = transform(pure)

    @functools.wraps(fun)
    def stateful(placed: Any, /, *args: Any, **kwargs: Any) -> Any:
        def with_state_first(*args: Any, **kwargs: Any) -> Any:
            out, rest = transformed((placed, None), args, kwargs)
            return (rest[1], (out, rest[0])) if has_aux else (rest, out)

        return with_modules(with_state_first, args, kwargs)

    return stateful


def of_trees(fun: Callable[..., Any]) -> Callable[..., Any]:
    """A function whose arguments hold modules as one of trees, called by `with_modules`: from what the modules hold to
    what they hold afterwards, and its result."""
    extract = sys.modules["flax.nnx"].extract

    @functools.wraps(fun)
    def pure(*args: Any, **kwargs: Any) -> Any:
        given = extract.from_tree((args, kwargs), merge_fn=_merged, ctxtag=_TAG, is_inner=True)
        out = fun(*given[0], **given[1])
        return extract.to_tree((extract.clear_non_graph_nodes(given), out), split_fn=_split, ctxtag=_TAG)

    return pure


def with_modules(pure: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[Any, Any]) -> Any:
    """Calls what `of_trees` made, or a transform of it, with arguments that hold modules; these change as `fun` would
    change them."""
    nnx = sys.modules["flax.nnx"]
    with nnx.update_context(_TAG):
        trees = nnx.extract.to_tree((tuple(args), dict(kwargs)), split_fn=_split, ctxtag=_TAG)
        changed = pure(*trees[0], **trees[1])
        return nnx.extract.from_tree(changed, merge_fn=_merged, ctxtag=_TAG, is_inner=False)[1]


def _split(context: Any, _path: Any, _prefix: Any, module: Any) -> Any:
    """A module as a tree of the arrays that it holds, which knows their paths."""
    nnx = sys.modules["flax.nnx"]
    graph, state = context.flatten(module)
    arrays = [leaf.get_raw_value() if isinstance(leaf, nnx.Variable) else leaf for leaf in state.leaves]
    return nnx.extract.NodeStates.from_split(graph, arrays, metadata=tuple(state.paths))


def _merged(context: Any, _path: Any, _prefix: Any, tree: Any) -> Any:
    return context.unflatten(tree.graphdef, *tree.states)


def paths_in_modules(tree: Any) -> list[tuple[Any, ...]]:
    """The path of each leaf of a tree, in modules the one by which people know it."""
    nnx = sys.modules["flax.nnx"]
    is_module = lambda x: isinstance(x, nnx.extract.NodeStates)
    found = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_module)
    inside = lambda leaf: leaf.metadata if is_module(leaf) else [()]
    return [(*path, *map(jax.tree_util.DictKey, more)) for path, leaf in found for more in inside(leaf)]
