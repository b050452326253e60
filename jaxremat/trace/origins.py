"""The joint program with every node's origin: which equation of the primal program it stems from.

Forms that stay plain JAX decide on the primal program, but only the joint program shows what a decision costs. Each
primal equation therefore runs inside a scope of its own, which differentiation carries along, and each of its results
passes a mark: what the backward reads behind the mark can carry a name, what it reads before it (the result of tanh,
say, which its derivative reads itself) cannot.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxremat.base import compat
from jaxremat.base.compat import Eqn, Jaxpr
from jaxremat.trace import jaxpr as jaxprs
from jaxremat.trace.joint import Joint, differentiate
from jaxremat.trace.paths import number_of_scope, scope
from jaxremat.trace.primal import Primal

_MARK = re.compile(r"@(\d+)\.(\d+)")


@dataclasses.dataclass(frozen=True, eq=False)
class Origins:
    """A joint program whose nodes know where they come from.

    Attributes:
      joint: forward and backward, with marks.
      group: [N] which group of the primal program each node stems from; -1 where it is unknown.
      marks: one name per node, None where the node is no mark.
    """

    joint: Joint
    group: np.ndarray
    marks: tuple[str | None, ...]


def mark_of(equation: int, result: int) -> str:
    """The name of the mark that a result of an equation passes."""
    return f"@{equation}.{result}"


def is_mark(name: str) -> bool:
    """Whether a name is such a mark's, and not of a program's author."""
    return bool(_MARK.fullmatch(name))


def place_of(mark: str) -> tuple[int, int]:
    """The equation of the primal program, and its result, that pass a mark."""
    found = _MARK.fullmatch(mark)
    assert found, mark
    return int(found[1]), int(found[2])


def trace_equations(primal: Primal) -> Origins:
    """Every equation of the primal is a group; result k of equation i passes the mark `mark_of(i, k)`."""
    number = {id(eqn): index for index, eqn in enumerate(primal.jaxpr.eqns)}

    def rule(eqn: Eqn, inputs: list[Any]) -> list[Any]:
        index = number[id(eqn)]
        with jax.named_scope(scope(index)):
            outputs = compat.bind(eqn, inputs)
            return [compat.mark(x, mark_of(index, k)) if _can_be_named(x) else x for k, x in enumerate(outputs)]

    return _origins(differentiate(primal, lambda inputs: jaxprs.evaluate(primal.jaxpr, inputs, rule)))


def trace_regions(primal: Primal, raw: Jaxpr) -> Origins:
    """Every checkpoint that the author placed is a group; his names are the marks.

    Args:
      primal: the program.
      raw: the same program with its calls and checkpoints in place, from the same flat inputs.
    """
    opened = iter(range(len(raw.eqns) + 10**6))

    def rule(eqn: Eqn, inputs: list[Any], inside: bool = False) -> list[Any] | None:
        body = jaxprs.inlined_body(eqn)
        if body is None:
            return None
        if inside or not jaxprs.is_checkpoint(eqn):
            with compat.at_position_of(eqn):
                return jaxprs.evaluate(body, inputs, functools.partial(rule, inside=inside))
        with jax.named_scope(scope(next(opened))):
            return jaxprs.evaluate(body, inputs, functools.partial(rule, inside=True))

    return _origins(differentiate(primal, lambda inputs: jaxprs.evaluate(raw, inputs, rule)))


def _origins(joint: Joint) -> Origins:
    found = [number_of_scope(compat.name_stack(eqn)) for eqn in joint.eqns]
    group = np.asarray([-1 if number is None else number for number in found], np.int64)
    return Origins(joint, group, tuple(map(compat.name_of, joint.eqns)))


def _can_be_named(x: Any) -> bool:
    return jnp.issubdtype(jax.typeof(x).dtype, jnp.inexact)


def names_in(jaxpr: Jaxpr) -> Sequence[str]:
    """The names that checkpoints in a program can save, in order of appearance."""
    found: dict[str, None] = {}

    def visit(jaxpr: Jaxpr, inside: bool) -> None:
        for eqn in jaxpr.eqns:
            name = compat.name_of(eqn)
            if inside and name is not None:
                found[name] = None
            for body in jaxprs.subjaxprs(eqn):
                visit(body, inside or jaxprs.is_checkpoint(eqn))

    visit(jaxpr, False)
    return tuple(found)
