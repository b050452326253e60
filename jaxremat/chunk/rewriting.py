"""Replacing parts of any function: walk its jaxpr, let a finder name what it can compute otherwise, run the rest as is.

A finder sees one jaxpr at a time, with jit equations inlined, and returns `Finding`s. Bodies of scan, while, cond and
checkpoint are visited too. Nothing is decided here about *what* to look for; `jaxremat.attention` and
`jaxremat.chunk.loss_head` are the two finders.
"""

from __future__ import annotations

import dataclasses
import functools
import heapq
from collections.abc import Callable, Iterator, Sequence

import jax

from jaxremat.base import compat
from jaxremat.base.compat import Eqn, Jaxpr, Literal, Var
from jaxremat.trace.jaxpr import evaluate, shape_of, value_of, vars_of

_INLINE = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "core_call": "call_jaxpr"}
_BODIES = {"scan": ("jaxpr",), "while": ("body_jaxpr",), "cond": ("branches",)}
_REMAT = ("remat2", "checkpoint")


@dataclasses.dataclass(frozen=True, eq=False)
class Finding:
    """A part of a program that a finder recognised.

    Attributes:
      kind: what it is, such as "softmax attention".
      where: source line of its main equation.
      shape: of the large value in it.
      large_bytes: of that value.
      reason: why it is left as it is; empty if it is replaced.
      reads, gives: variables that the replacement needs and provides.
      emit: computes the values of `gives` from those of `reads`.
    """

    kind: str
    where: str
    shape: tuple[int, ...]
    large_bytes: int
    reason: str = ""
    reads: tuple[Var, ...] = ()
    gives: tuple[Var, ...] = ()
    emit: Callable[[list], list] | None = None

    @property
    def replaced(self) -> bool:
        return not self.reason

    def __str__(self) -> str:
        verdict = "replaced" if self.replaced else f"left: {self.reason}"
        return f"{self.kind} {list(self.shape)}, {self.large_bytes / 2**20:.1f} MiB, at {self.where}: {verdict}"


class Report(list[Finding]):
    """What was found in a function, in program order."""

    def __str__(self) -> str:
        return "\n".join(map(str, self)) or "nothing found"


Finder = Callable[[Jaxpr], list[Finding]]


def rewritten(fun: Callable, finder: Finder) -> Callable:
    """`fun` with every finding replaced; same signature, composes with every transformation.

    The function is traced anew at each call, so call it under `jit`. Arguments that are not arrays (flags, strings,
    Python numbers) are passed through as they are. `explain(*args)` of the result returns the `Report`.
    """

    def prepare(args, kwargs):
        leaves, in_tree = jax.tree.flatten((args, kwargs))
        traced = [i for i, leaf in enumerate(leaves) if hasattr(leaf, "shape") and hasattr(leaf, "dtype")]
        out_tree = None

        def flat(*arrays):
            nonlocal out_tree
            full = dict(enumerate(leaves)) | dict(zip(traced, arrays))
            args, kwargs = jax.tree.unflatten(in_tree, full.values())
            out, out_tree = jax.tree.flatten(fun(*args, **kwargs))
            return out

        arrays = [leaves[i] for i in traced]
        jaxpr = inline_jits(jax.make_jaxpr(flat)(*arrays))
        return jaxpr, arrays, out_tree

    @functools.wraps(fun)
    def rewritten_fun(*args, **kwargs):
        jaxpr, arrays, out_tree = prepare(args, kwargs)
        return jax.tree.unflatten(out_tree, run(jaxpr, arrays, finder))

    def explain(*args, **kwargs) -> Report:
        return Report(findings(prepare(args, kwargs)[0], finder))

    rewritten_fun.explain = explain  # type: ignore[attr-defined]
    return rewritten_fun


def inline_jits(jaxpr: Jaxpr) -> Jaxpr:
    """The same program with jit equations, and the custom rule of softmax, replaced by their bodies."""

    def rule(eqn: Eqn, inputs: list) -> list | None:
        body = _inlined(eqn)
        if body is None:
            return None
        with compat.at_position_of(eqn):
            return evaluate(body, inputs, rule)

    flat = jax.make_jaxpr(lambda *xs: evaluate(jaxpr, xs, rule))(*[shape_of(v) for v in jaxpr.invars])
    return compat.without_dead_code(flat)


def findings(jaxpr: Jaxpr, finder: Finder) -> Iterator[Finding]:
    """Everything that the finder sees in a jaxpr and in the bodies inside it."""
    yield from finder(jaxpr)
    for eqn in jaxpr.eqns:
        for body in _bodies(eqn):
            yield from findings(inline_jits(body), finder)


def run(jaxpr: Jaxpr, inputs: Sequence, finder: Finder) -> list:
    """Evaluates a jaxpr with its findings replaced."""
    found = [f for f in finder(jaxpr) if f.replaced]
    env = dict(zip(jaxpr.constvars, compat.consts_of(jaxpr)))
    env.update(zip(jaxpr.invars, inputs, strict=True))
    for node in _in_order(jaxpr, found):
        if isinstance(node, Finding):
            assert node.emit is not None
            env.update(zip(node.gives, node.emit([env[var] for var in node.reads]), strict=True))
            continue
        values = [value_of(env, atom) for atom in node.invars]
        env.update(zip(node.outvars, _run_equation(node, values, finder), strict=True))
    return [value_of(env, atom) for atom in jaxpr.outvars]


def _run_equation(eqn: Eqn, values: list, finder: Finder) -> list:
    bodies = [inline_jits(body) for body in _bodies(eqn)]
    if not any(f.replaced for body in bodies for f in findings(body, finder)):
        return compat.bind(eqn, values)
    if eqn.primitive.name in _REMAT:
        options = {key: eqn.params[key] for key in ("prevent_cse", "policy")}
        with compat.at_position_of(eqn):
            return jax.checkpoint(lambda *xs: run(bodies[0], xs, finder), **options)(*values)
    new = [jax.make_jaxpr(lambda *xs, b=b: run(b, xs, finder))(*map(shape_of, b.invars)) for b in bodies]
    (key,) = _BODIES[eqn.primitive.name]
    params = eqn.params | {key: tuple(new) if isinstance(eqn.params[key], tuple) else new[0]}
    return compat.bind(eqn.replace(params=params), values)


def _in_order(jaxpr: Jaxpr, found: Sequence[Finding]) -> Iterator[Eqn | Finding]:
    """What has to run, each after what it reads, otherwise in the order of the program."""
    nodes: list[Eqn | Finding] = [*jaxpr.eqns, *found]
    made_by = {var: i for i, eqn in enumerate(jaxpr.eqns) for var in eqn.outvars}
    rank = {i: float(i) for i in range(len(jaxpr.eqns))}
    for i, finding in enumerate(found, len(jaxpr.eqns)):
        rank[i] = min(made_by[var] for var in finding.gives) + 0.5
        made_by.update(dict.fromkeys(finding.gives, i))
    reads = [node.reads if isinstance(node, Finding) else vars_of(node.invars) for node in nodes]
    stack = [made_by[v] for v in vars_of(jaxpr.outvars) if v in made_by]
    stack += [i for i, node in enumerate(nodes) if not isinstance(node, Finding) and node.effects]
    needs: dict[int, set[int]] = {}
    while stack:
        i = stack.pop()
        if i not in needs:
            needs[i] = {made_by[var] for var in reads[i] if var in made_by}
            stack.extend(needs[i])
    readers: dict[int, list[int]] = {i: [] for i in needs}
    for i, parents in needs.items():
        for parent in parents:
            readers[parent].append(i)
    ready = [(rank[i], i) for i, parents in needs.items() if not parents]
    heapq.heapify(ready)
    while ready:
        _, i = heapq.heappop(ready)
        yield nodes[i]
        for reader in readers[i]:
            needs[reader].discard(i)
            if not needs[reader]:
                heapq.heappush(ready, (rank[reader], reader))


def readers_of(jaxpr: Jaxpr) -> dict[Var, list[Eqn | None]]:
    """Who reads each variable; None stands for the result of the jaxpr."""
    readers: dict[Var, list[Eqn | None]] = {}
    for eqn in [*jaxpr.eqns, None]:
        for atom in jaxpr.outvars if eqn is None else eqn.invars:
            if not isinstance(atom, Literal):
                readers.setdefault(atom, []).append(eqn)
    return readers


def _inlined(eqn: Eqn) -> Jaxpr | None:
    name = eqn.primitive.name
    if name == "custom_jvp_call" and str(eqn.params.get("name", "")).endswith("softmax"):
        return eqn.params["call_jaxpr"]
    return eqn.params[_INLINE[name]] if name in _INLINE else None


def _bodies(eqn: Eqn) -> list[Jaxpr]:
    keys = ("jaxpr",) if eqn.primitive.name in _REMAT else _BODIES.get(eqn.primitive.name, ())
    bodies: list[Jaxpr] = []
    for key in keys:
        value = eqn.params[key]
        bodies.extend(value if isinstance(value, tuple) else [value])
    return bodies
