"""Replacing parts of any function: walk its jaxpr, let a finder name what it can compute otherwise, run the rest as is.

A finder sees one jaxpr at a time, with calls inlined; the bodies of scan, while, cond and checkpoint are visited too.
Nothing is decided here about *what* to look for.
"""

from __future__ import annotations

import functools
import heapq
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from jaxremat.base import compat
from jaxremat.base.compat import Eqn, Jaxpr
from jaxremat.chunk.rewriting.finding import Finder, Finding, Findings
from jaxremat.trace import walk
from jaxremat.trace.jaxpr import inlining, traced_with, value_of, vars_of


def rewritten(fun: Callable[..., Any], finder: Finder) -> Callable[..., Any]:
    """`fun` with every finding replaced; same signature, composes with every transformation.

    The function is traced anew at each call, so call it under `jit`. Arguments that are not arrays (flags, strings,
    Python numbers) are passed through as they are. `explain(*args)` of the result returns the `Findings`.
    """

    def prepare(args: Any, kwargs: Any) -> Any:
        leaves, in_tree = jax.tree.flatten((args, kwargs))
        traced = [i for i, leaf in enumerate(leaves) if hasattr(leaf, "shape") and hasattr(leaf, "dtype")]
        out_tree = None

        def flat(*arrays: Any) -> Any:
            nonlocal out_tree
            full = dict(enumerate(leaves)) | dict(zip(traced, arrays))
            args, kwargs = jax.tree.unflatten(in_tree, full.values())
            out, out_tree = jax.tree.flatten(fun(*args, **kwargs))
            return out

        arrays = [leaves[i] for i in traced]
        return jax.make_jaxpr(flat)(*arrays), arrays, out_tree

    @functools.wraps(fun)
    def rewritten_fun(*args: Any, **kwargs: Any) -> Any:
        jaxpr, arrays, out_tree = prepare(args, kwargs)
        return jax.tree.unflatten(out_tree, run(jaxpr, arrays, finder))

    def explain(*args: Any, **kwargs: Any) -> Findings:
        return find(prepare(args, kwargs)[0], finder)

    rewritten_fun.explain = explain  # type: ignore[attr-defined]
    return rewritten_fun


def find(jaxpr: Jaxpr, finder: Finder) -> Findings:
    """What the finder sees in a jaxpr and in the bodies inside it."""
    return Findings(_findings(_seen(jaxpr, finder), finder))


def run(jaxpr: Jaxpr, inputs: Sequence[Any], finder: Finder) -> list[Any]:
    """Evaluates a jaxpr with its findings replaced."""
    seen = _seen(jaxpr, finder)
    found = [f for f in finder(seen) if f.replaced]
    env = dict(zip(seen.constvars, compat.consts_of(seen)))
    env.update(zip(seen.invars, inputs, strict=True))
    for node in _in_order(seen, found):
        if isinstance(node, Finding):
            assert node.emit is not None
            env.update(zip(node.gives, node.emit([env[var] for var in node.reads]), strict=True))
            continue
        values = [value_of(env, atom) for atom in node.invars]
        env.update(zip(node.outvars, _run_equation(node, values, finder), strict=True))
    return [value_of(env, atom) for atom in seen.outvars]


def _seen(jaxpr: Jaxpr, finder: Finder) -> Jaxpr:
    """The jaxpr as the finder sees it."""
    return traced_with(jaxpr, inlining(finder.body_of))


def _findings(seen: Jaxpr, finder: Finder) -> Iterator[Finding]:
    yield from finder(seen)
    for eqn in seen.eqns:
        yield from _inside(eqn, finder)


def _inside(eqn: Eqn, finder: Finder) -> Iterator[Finding]:
    with compat.in_body_of(eqn):
        found = [find(body, finder) for body in walk.bodies(eqn)]
    return itertools.chain.from_iterable(found)


def _run_equation(eqn: Eqn, values: list[Any], finder: Finder) -> list[Any]:
    if not any(f.replaced for f in _inside(eqn, finder)):
        return compat.bind(eqn, values)
    return walk.rerun(eqn, values, functools.partial(run, finder=finder))


def _in_order(jaxpr: Jaxpr, found: Sequence[Finding]) -> Iterator[Eqn | Finding]:
    """What has to run, each after what it reads, otherwise in the order of the program."""
    nodes: list[Eqn | Finding] = [*jaxpr.eqns, *found]
    made_by = {var: i for i, eqn in enumerate(jaxpr.eqns) for var in eqn.outvars}
    rank = {i: float(i) for i in range(len(jaxpr.eqns))}
    for i, finding in enumerate(found, len(jaxpr.eqns)):
        rank[i] = min(made_by[var] for var in finding.gives) + 0.5
        made_by.update(dict.fromkeys(finding.gives, i))
    reads = [node.reads if isinstance(node, Finding) else vars_of(node.invars) for node in nodes]
    roots = [made_by[v] for v in vars_of(jaxpr.outvars) if v in made_by]
    roots += [i for i, node in enumerate(nodes) if not isinstance(node, Finding) and node.effects]
    needs = _needed(roots, lambda i: {made_by[var] for var in reads[i] if var in made_by})
    return (nodes[i] for i in _topological(needs, rank))


def _needed(roots: Sequence[int], parents_of: Callable[[int], set[int]]) -> dict[int, set[int]]:
    """The parents of everything that the roots need."""
    needs: dict[int, set[int]] = {}
    stack = list(roots)
    while stack:
        i = stack.pop()
        if i not in needs:
            needs[i] = parents_of(i)
            stack.extend(needs[i])
    return needs


def _topological(parents: dict[int, set[int]], rank: dict[int, float]) -> Iterator[int]:
    """Every node after its parents, the lowest rank first."""
    readers: dict[int, list[int]] = {i: [] for i in parents}
    for i, above in parents.items():
        for parent in above:
            readers[parent].append(i)
    waiting = {i: len(above) for i, above in parents.items()}
    ready = [(rank[i], i) for i, number in waiting.items() if not number]
    heapq.heapify(ready)
    while ready:
        _, i = heapq.heappop(ready)
        yield i
        for reader in readers[i]:
            waiting[reader] -= 1
            if not waiting[reader]:
                heapq.heappush(ready, (rank[reader], reader))
