"""Pieces of a program, each in a `jax.checkpoint` of its own: plain JAX, so every kind of differentiation works."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxremat.base import compat
from jaxremat.base.compat import Eqn, Var
from jaxremat.base.policy import NamePolicy
from jaxremat.emit.names import Labels, name_results
from jaxremat.trace import jaxpr as jaxprs
from jaxremat.trace.primal import Primal


@dataclasses.dataclass(frozen=True)
class Pieces:
    """How a primal program is cut.

    Attributes:
      ends: the last equation of every piece but the last, ascending.
      duplicated: equations that every piece runs for itself where it needs them: cheap ones, that only inputs feed.
    """

    ends: tuple[int, ...]
    duplicated: tuple[int, ...] = ()

    def piece_of(self, number: int) -> np.ndarray:
        """[E] the piece of each of `number` equations."""
        return np.searchsorted(np.asarray(self.ends, np.int64), np.arange(number), side="left")

    def to_json(self) -> dict[Any, Any]:
        return {"ends": list(self.ends), "sunk": list(self.duplicated)}

    @staticmethod
    def from_json(data: dict[Any, Any]) -> Pieces:
        return Pieces(tuple(data["ends"]), tuple(data["sunk"]))


@dataclasses.dataclass(frozen=True, eq=False)
class _Part:
    """Equations that run together, from values to values."""

    eqns: tuple[Eqn, ...]
    reads: tuple[Var, ...]
    makes: tuple[Var, ...]

    @property
    def has_effects(self) -> bool:
        return any(map(jaxprs.has_effects, self.eqns))


def emit_pieces(primal: Primal, pieces: Pieces, labels: Labels) -> Callable[..., list[Any]]:
    """The flat primal function whose pieces, all but the last, recompute what is not named.

    Args:
      primal: the program.
      pieces: where it is cut.
      labels: names of results (equation, result), which are saved.
    """
    number = {id(eqn): index for index, eqn in enumerate(primal.jaxpr.eqns)}
    parts = _parts(primal, pieces)
    policy = NamePolicy(tuple(labels.values())) if labels else None
    constants = dict(zip(primal.jaxpr.constvars, compat.consts_of(primal.jaxpr)))

    def runner(part: _Part) -> Callable[..., Any]:
        def run(*inputs: Any) -> Any:
            env = constants | dict(zip(part.reads, inputs))
            for eqn in part.eqns:
                outputs = compat.bind(eqn, [jaxprs.value_of(env, atom) for atom in eqn.invars])
                env.update(zip(eqn.outvars, name_results(number[id(eqn)], outputs, labels)))
            return [env[v] for v in part.makes]

        return run

    def emitted(*inputs: Any) -> Any:
        env = constants | dict(zip(primal.jaxpr.invars, inputs))
        for position, part in enumerate(parts):
            run = runner(part)
            if position < len(parts) - 1 and not part.has_effects:
                run = jax.checkpoint(run, policy=policy)
            env.update(zip(part.makes, run(*[env[v] for v in part.reads])))
        return [jaxprs.value_of(env, atom) for atom in primal.jaxpr.outvars]

    return emitted


def emit_in_one(primal: Primal, pieces: Pieces, labels: Labels) -> Callable[..., list[Any]]:
    """The pieces inside one more checkpoint, which saves what is named and nothing else."""
    return jax.checkpoint(emit_pieces(primal, pieces, labels), policy=NamePolicy(tuple(labels.values())))


def _parts(primal: Primal, pieces: Pieces) -> list[_Part]:
    eqns = primal.jaxpr.eqns
    duplicated = set(pieces.duplicated)
    piece = pieces.piece_of(len(eqns))
    maker = {v: index for index, eqn in enumerate(eqns) for v in eqn.outvars}
    members = []
    for p in range(len(pieces.ends) + 1):
        own = [index for index in np.flatnonzero(piece == p).tolist() if index not in duplicated]
        wanted = primal.jaxpr.outvars if p == len(pieces.ends) else []
        members.append(sorted({*own, *_duplicated_under(eqns, own, wanted, duplicated, maker)}))
    return [_part(primal, members, p, duplicated) for p in range(len(members))]


def _duplicated_under(
    eqns: Sequence[Eqn], own: Sequence[int], wanted: Sequence[Any], duplicated: set[int], maker: dict[Any, Any]
) -> set[int]:
    """The duplicated equations that some equations and some wanted values need."""
    needed: set[int] = set()
    waiting = jaxprs.vars_of([*wanted, *(atom for index in own for atom in eqns[index].invars)])
    while waiting:
        index = maker.get(waiting.pop())
        if index in duplicated and index not in needed:
            needed.add(index)
            waiting.extend(jaxprs.vars_of(eqns[index].invars))
    return needed


def _part(primal: Primal, members: Sequence[Sequence[int]], p: int, duplicated: set[int]) -> _Part:
    eqns = primal.jaxpr.eqns
    own = tuple(eqns[index] for index in members[p])
    made = {v for eqn in own for v in eqn.outvars}
    constants = set(primal.jaxpr.constvars)
    reads = dict.fromkeys(v for eqn in own for v in jaxprs.vars_of(eqn.invars) if v not in made and v not in constants)
    kept = {v for index in members[p] if index not in duplicated for v in eqns[index].outvars}
    if p == len(members) - 1:
        kept = made
    later = [v for rest in members[p + 1 :] for index in rest for v in jaxprs.vars_of(eqns[index].invars)]
    makes = dict.fromkeys(v for v in (*later, *jaxprs.vars_of(primal.jaxpr.outvars)) if v in kept)
    return _Part(own, tuple(reads), tuple(makes))
