"""State that lies in the host's memory between its uses: a step reads each leaf of it on the device, and what takes the
leaf's place goes back.

A leaf is fetched where it is read first, and its successor stored once it is made. With the step ordered result by
result (`step.order`), that is around the leaf's own update; a GPU's kernels read the host's memory themselves.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from jaxremat.show.units import count_of
from jaxremat.step.arguments import StepCall
from jaxremat.trace.arguments import is_traced_by_jit


def with_state_on_host(fun: Callable[..., Any], call: StepCall) -> Callable[..., Any]:
    """`fun` as a function of the leaves of a call, for arrays of the device, where some leaves lie on the host."""
    bound = call.bind(fun)
    on_host = [placement.on_host for placement in call.placements]

    def streamed(*leaves: Any) -> Any:
        out = bound(*(_fetched(leaf) if there else leaf for leaf, there in zip(leaves, on_host, strict=True)))
        flat, tree = jax.tree.flatten(out)
        paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree.leaves_with_path(out)]
        leaf_of = _succeeded(call, paths, flat)
        goes_back = [k in leaf_of and on_host[leaf_of[k]] for k in range(len(flat))]
        return jax.tree.unflatten(tree, [_stored(x) if back else x for x, back in zip(flat, goes_back)])

    return streamed if any(on_host) else bound


@contextlib.contextmanager
def telling_of_host_memory(call: StepCall) -> Iterator[None]:
    """Adds to an error of tracing which arguments lie on the host, and the remedy: JAX computes with arrays of one
    memory only."""
    try:
        yield
    except Exception as error:
        there = [name for name, placement in zip(call.names, call.placements) if placement.on_host]
        if there:
            error.add_note(
                f"in the host's memory: {count_of(len(there), 'argument')} of this step, {there[0]} first. With"
                " allow=('offload',) jaxremat.jit brings each to the device where it is read, and its successor back"
            )
        raise


def _succeeded(call: StepCall, paths: Sequence[str], results: Sequence[Any]) -> dict[int, int]:
    """For each result that takes the place of a leaf, the leaf: one of its shape and dtype whose path ends alike, the
    longer the better; where paths have no end in common, donated leaves in order."""
    leaves: dict[Any, list[int]] = {}
    for i, shape in enumerate(call.shapes):
        leaves.setdefault(_kind(shape), []).append(i)
    alike = [(k, i) for k, result in enumerate(results) for i in leaves.get(_kind(result), ())]
    common = {(k, i): _common_end(call.names[i], paths[k]) for k, i in alike}
    leaf_of: dict[int, int] = {}
    free = set(range(len(call.names)))
    for k, i in sorted(alike, key=lambda pair: (-common[pair], not call.donated[pair[1]], pair[1], pair[0])):
        if k not in leaf_of and i in free and (common[k, i] or call.donated[i]):
            leaf_of[k] = i
            free.remove(i)
    return leaf_of


def _common_end(one: str, other: str) -> int:
    """How many parts two paths have in common at their ends."""
    pairs = list(zip(reversed(one.split("/")), reversed(other.split("/"))))
    return next((n for n, (a, b) in enumerate(pairs) if a != b), len(pairs))


def _kind(leaf: Any) -> tuple[Any, ...] | None:
    """Shape and dtype of an array; None of anything else."""
    aval: Any = jax.typeof(leaf) if is_traced_by_jit(leaf) else None
    return aval and (aval.shape, aval.dtype)


def _fetched(leaf: Any) -> Any:
    return jax.device_put(leaf, jax.memory.Space.Device)


def _stored(leaf: Any) -> Any:
    return jax.device_put(leaf, jax.memory.Space.Host)
