"""Derivative rules that functions bring along: what they compute is no part of a program, but of its gradient."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Sequence

from jaxremat.base import compat
from jaxremat.base.compat import Eqn
from jaxremat.trace.fingerprint import describe
from jaxremat.trace.jaxpr import shape_of, subjaxprs
from jaxremat.trace.joint import gradient_jaxpr
from jaxremat.trace.primal import Primal, read_primal
from jaxremat.trace.primitives import OWN_RULES


def own_rules(eqns: Iterable[Eqn]) -> Iterator[str]:
    """A line per input and equation of what the rules among equations, and in their bodies, compute."""
    for eqn in eqns:
        if compat.primitive_name(eqn) in OWN_RULES:
            yield from _described(eqn)
        elif bodies := subjaxprs(eqn):
            with compat.in_body_of(eqn):
                for body in bodies:
                    yield from own_rules(body.eqns)


def _described(eqn: Eqn) -> Sequence[str]:
    """What an equation's rule computes; one that has no gradient by itself, as where none is asked for, is like no
    other."""
    try:
        return describe(gradient_jaxpr(_alone(eqn)))
    except Exception:  # noqa: BLE001 - whatever the rule raises
        return [f"unknown {uuid.uuid4()}"]


def _alone(eqn: Eqn) -> Primal:
    """An equation as a program."""
    return read_primal(lambda *inputs: compat.bind(eqn, list(inputs)), tuple(map(shape_of, eqn.invars)), None, False)
