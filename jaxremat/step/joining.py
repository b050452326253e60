"""Conditionals and shard_maps that a gradient passes through, joined: the second makes again what the first left it.

Once it has been differentiated, a conditional is two: the first leaves, all at once, what the second reads. Where the
second runs the branch again, what it reads is made inside of it, and can be planned there. Of a shard_map that holds
too, on each device.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax import lax

from jaxremat.base.compat import Eqn, Jaxpr, Literal, Var
from jaxremat.step.rewriting import bodies_of, rewritten
from jaxremat.trace import jaxpr as jaxprs


def joined(jaxpr: Jaxpr) -> Jaxpr | None:
    """The program with all such pairs joined; None where it has none."""
    replacements: dict[Var, Callable[[list[Any]], list[Any]]] = {}
    for pair in _pairs(jaxpr):
        under_way = _Join(*pair)
        replacements[under_way.early.outvars[0]] = under_way.first
        replacements[under_way.late.outvars[0]] = under_way.second
    return rewritten(jaxpr, replacements) if replacements else None


def _pairs(jaxpr: Jaxpr) -> Iterator[tuple[Eqn, Eqn, frozenset[Var]]]:
    """(first, second, what the first leaves to the second alone); each equation is in one pair at most."""
    readers: dict[Var, list[Eqn]] = collections.defaultdict(list)
    for eqn in jaxpr.eqns:
        for var in set(jaxprs.vars_of(eqn.invars)):
            readers[var].append(eqn)
    outputs, taken = set(jaxprs.vars_of(jaxpr.outvars)), set()
    for early in filter(_can_be_joined, jaxpr.eqns):
        left: dict[int, list[Var]] = collections.defaultdict(list)
        alone = [v for v in early.outvars if v not in outputs and len(readers[v]) == 1]
        for var in alone:
            left[id(readers[var][0])].append(var)
        partners = [eqn for v in alone for eqn in readers[v] if id(eqn) not in taken and _matches(early, eqn)]
        if id(early) not in taken and partners:
            late = max(partners, key=lambda eqn: sum(map(jaxprs.size_bytes, left[id(eqn)])))
            taken |= {id(early), id(late)}
            yield early, late, frozenset(left[id(late)])


def _can_be_joined(eqn: Eqn) -> bool:
    return eqn.primitive.name in ("cond", "shard_map") and bool(eqn.outvars) and not jaxprs.has_effects(eqn)


def _matches(early: Eqn, late: Eqn) -> bool:
    """Whether both choose the same branch, or run on the same devices."""
    if early.primitive is not late.primitive or not _can_be_joined(late):
        return False
    if early.primitive.name == "cond":
        return early.invars[0] is late.invars[0] and not isinstance(early.invars[0], Literal)
    return all(early.params[name] == late.params[name] for name in ("mesh", "newly_manual_axes", "check_vma"))


class _Join:
    """Runs the first without what only the second reads, then the second with the first inside."""

    def __init__(self, early: Eqn, late: Eqn, left: frozenset[Var]) -> None:
        self.early, self.late = early, late
        self._kept = [v not in left for v in early.outvars]
        self._links = [early.outvars.index(v) if v in left else None for v in _operands(late)]

    def first(self, inputs: list[Any]) -> list[Any]:
        """The outputs of the first; None for those that only the second reads."""
        self._inputs = inputs
        chosen = [k for k, kept in enumerate(self._kept) if kept]
        bodies = [_picking(body, chosen) for body in bodies_of(self.early)]
        specs = _Specs.of(self.early).with_results(chosen)
        made = dict(zip(chosen, _run(self.early, bodies, inputs, specs) if chosen else ()))
        return [made.get(k) for k in range(len(self._kept))]

    def second(self, inputs: list[Any]) -> list[Any]:
        """The outputs of the second, behind a barrier, without which a compiler would merge both runs of the first."""
        skip = len(inputs) - len(self._links)
        unlinked = [k for k, link in enumerate(self._links) if link is None]
        late = [inputs[skip + k] for k in unlinked]
        bodies = [self._both(*pair) for pair in zip(bodies_of(self.early), bodies_of(self.late))]
        own = _Specs.of(self.late)
        specs = _Specs.of(self.early).joined_with(own, unlinked)
        fenced = lax.optimization_barrier([*self._inputs[skip:], *late])
        return _run(self.late, bodies, [*inputs[:skip], *fenced], specs)

    def _both(self, early: Jaxpr, late: Jaxpr) -> Callable[..., list[Any]]:
        def run(*operands: Any) -> list[Any]:
            made = jaxprs.evaluate(early, operands[: len(early.invars)])
            given = iter(operands[len(early.invars) :])
            return jaxprs.evaluate(late, [next(given) if link is None else made[link] for link in self._links])

        return run


@dataclasses.dataclass(frozen=True)
class _Specs:
    """How operands and results of a shard_map lie; nothing for a conditional."""

    operands: tuple[Any, ...]
    results: tuple[Any, ...]

    @staticmethod
    def of(eqn: Eqn) -> _Specs:
        return _Specs(tuple(eqn.params.get("in_specs", ())), tuple(eqn.params.get("out_specs", ())))

    def with_results(self, chosen: Sequence[int]) -> _Specs:
        return _Specs(self.operands, tuple(self.results[k] for k in chosen if self.results))

    def joined_with(self, late: _Specs, unlinked: Sequence[int]) -> _Specs:
        return _Specs((*self.operands, *(late.operands[k] for k in unlinked if late.operands)), late.results)


def _operands(eqn: Eqn) -> Sequence[Any]:
    return eqn.invars[1:] if eqn.primitive.name == "cond" else eqn.invars


def _picking(body: Jaxpr, chosen: Sequence[int]) -> Callable[..., list[Any]]:
    def run(*operands: Any) -> list[Any]:
        made = jaxprs.evaluate(body, operands)
        return [made[k] for k in chosen]

    return run


def _run(eqn: Eqn, bodies: Sequence[Callable[..., list[Any]]], inputs: Sequence[Any], specs: _Specs) -> list[Any]:
    if eqn.primitive.name == "cond":
        return list(lax.switch(inputs[0], bodies, *inputs[1:]))
    run = jax.shard_map(
        lambda *shards: tuple(bodies[0](*shards)),
        mesh=eqn.params["mesh"],
        in_specs=specs.operands,
        out_specs=specs.results,
        axis_names=eqn.params["newly_manual_axes"],
        check_vma=eqn.params["check_vma"],
    )
    return list(run(*inputs))
