"""What a step renews: inputs of which a result is the new value, entry by entry, as updates and averages are."""

from __future__ import annotations

import collections
import functools
import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxremat.base import compat
from jaxremat.base.compat import Atom, Eqn, Jaxpr, Var
from jaxremat.trace import jaxpr as jaxprs

Bits = int
"""A set of inputs: input i is bit i."""


def renewed_inputs(jaxpr: Jaxpr) -> tuple[bool, ...]:
    """For each input, whether a result of its shape and dtype is computed from it through values of as many entries."""
    stems: dict[Var, Bits] = collections.defaultdict(int)
    stems.update((v, 1 << i) for i, v in enumerate(jaxpr.invars))
    for eqn in jaxpr.eqns:
        for read, made in _passed_on(eqn):
            if isinstance(read, Var) and math.prod(kind(read)[0]) == math.prod(kind(made)[0]):
                stems[made] |= stems[read]
    given_out: dict[tuple[tuple[int, ...], str, bool], Bits] = collections.defaultdict(int)
    for v in jaxprs.vars_of(jaxpr.outvars):
        given_out[kind(v)] |= stems[v]
    return tuple(bool(given_out[kind(v)] >> i & 1) for i, v in enumerate(jaxpr.invars))


def kind(atom: Any) -> tuple[tuple[int, ...], str, bool]:
    """Equal where one buffer can hold either: shape, dtype, and whether on the host."""
    return tuple(atom.aval.shape), str(atom.aval.dtype), jaxprs.is_on_host(atom)


def read_late(jaxpr: Jaxpr) -> tuple[bool, ...]:
    """For each input, whether it is first read when half of the program's bytes have been made, as an optimizer's state
    is; in a loop that carries it, of one iteration's."""
    reads = _Reads(jaxpr)
    return tuple(map(reads.is_late, jaxpr.invars))


class _Reads:
    """Where the inputs of a program are first read."""

    def __init__(self, jaxpr: Jaxpr) -> None:
        self._jaxpr = jaxpr
        made = np.cumsum([sum(map(jaxprs.size_bytes, eqn.outvars)) for eqn in jaxpr.eqns] or [0])
        self._middle = int(np.searchsorted(made, made[-1] / 2))
        self._first: dict[Var, int] = {}
        for position, eqn in enumerate(jaxpr.eqns):
            for var in jaxprs.vars_of(eqn.invars):
                self._first.setdefault(var, position)
        self._inside = functools.cache(_Reads)

    def is_late(self, var: Var) -> bool:
        position = self._first.get(var)
        if position is None:
            return False
        eqn = self._jaxpr.eqns[position]
        if (loop := _carried(eqn)) and var in eqn.invars[loop[0] :]:
            first, body, own = loop
            return self._inside(body).is_late(body.invars[eqn.invars.index(var, first) - first + own])
        return position > self._middle


def _carried(eqn: Eqn) -> tuple[int, Jaxpr, int] | None:
    """For a loop: the first input that it carries or scans over, its body, and the body's variable for that one."""
    params = eqn.params
    if eqn.primitive.name == "scan":
        consts, _ = compat.scan_arity(eqn)
        return consts, params["jaxpr"], consts
    if eqn.primitive.name == "while":
        return params["cond_nconsts"] + params["body_nconsts"], params["body_jaxpr"], params["body_nconsts"]
    return None


def _passed_on(eqn: Eqn) -> Iterator[tuple[Atom, Var]]:
    """What an equation reads with what it may make of that, entry by entry; a loop makes carries of carries."""
    if loop := _carried(eqn):
        carries = compat.scan_arity(eqn)[1] if eqn.primitive.name == "scan" else len(eqn.outvars)
        given = eqn.invars[loop[0] :]
        yield from zip(given[:carries], eqn.outvars)
        yield from itertools.product(given[carries:], eqn.outvars[carries:])
    else:
        yield from itertools.product(eqn.invars, eqn.outvars)
