"""Which integers of a forward might wait in fewer bytes: those that index arithmetic begins with.

What a gather and its transpose read is made of an index in several steps, and none of what they make is smaller. So the
index waits, and the steps run again.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import numpy as np

from jaxremat.base.compat import Eqn, Jaxpr, Var
from jaxremat.trace import jaxpr as jaxprs
from jaxremat.trace.bounds import Bounds, bounds_in
from jaxremat.trace.primitives import MADE_WHERE_READ

_WORTH = 1 / 256  # of the largest array beside it: what is saved of less, predictions cannot tell: `schedules.APART`


class Indices:
    """The integers of a program's forward that index arithmetic of its backward begins with.

    Args:
      jaxpr: a flat program.
      late: [E] bool, the equations of the backward.
    """

    def __init__(self, jaxpr: Jaxpr, late: Sequence[bool] | np.ndarray) -> None:
        self._late = [eqn for eqn, is_late in zip(jaxpr.eqns, late) if is_late]
        self._early = [eqn for eqn, is_late in zip(jaxpr.eqns, late) if not is_late]
        self._jaxpr = jaxpr

    @functools.cached_property
    def bounds(self) -> Mapping[Var, Bounds]:
        """Between which numbers each of them lies."""
        if not any(map(_is_wide, (v for eqn in self._early for v in eqn.outvars))):
            return {}
        found, chosen = bounds_in(self._jaxpr), dict[Var, Bounds]()
        starts: dict[Var, frozenset[Var]] = {}
        for eqn in self._early:
            start = _start(eqn, starts)
            for var in eqn.outvars:
                if start is not None and (not start or _is_no_smaller(var, found, start, chosen)):
                    starts[var] = start
                elif var in self._wanted and _is_wide(var) and jaxprs.array_bytes(var) >= self._least_bytes:
                    chosen[var] = found[var]
        return chosen

    @functools.cached_property
    def _least_bytes(self) -> float:
        """What an index must take to be worth another form."""
        return _WORTH * max(jaxprs.array_bytes(v) for eqn in self._early for v in eqn.outvars)

    @functools.cached_property
    def _wanted(self) -> set[Var]:
        """What the backward reads, at once or in steps that cost next to nothing."""
        wanted = {v for eqn in self._late for v in jaxprs.vars_of(eqn.invars)}
        for eqn in reversed(self._early):
            if eqn.primitive.name in MADE_WHERE_READ and not wanted.isdisjoint(eqn.outvars):
                wanted.update(jaxprs.vars_of(eqn.invars))
        return wanted


def _start(eqn: Eqn, starts: Mapping[Var, frozenset[Var]]) -> frozenset[Var] | None:
    """What the results of a step start from: nothing, if it reads constants only. None for any other equation."""
    if eqn.primitive.name not in MADE_WHERE_READ:
        return None
    return frozenset[Var]().union(*(starts.get(v, {v}) for v in jaxprs.vars_of(eqn.invars)))


def _is_no_smaller(var: Var, found: Mapping[Var, Bounds], start: frozenset[Var], chosen: Mapping[Var, Bounds]) -> bool:
    """Whether an integer starts from a single index, and takes no fewer bytes than it."""
    if len(start) > 1 or var not in found or not start <= chosen.keys():
        return False
    return all(_narrow_bytes(index, chosen[index]) <= _narrow_bytes(var, found[var]) for index in start)


def _is_wide(var: Var) -> bool:
    """Whether it is an array of integers of more than a byte."""
    dtype = getattr(var.aval, "dtype", None)
    return isinstance(dtype, np.dtype) and dtype.kind in "iu" and dtype.itemsize > 1 and jaxprs.shape_of(var).size > 1


def _narrow_bytes(var: Var, bounds: Bounds) -> int:
    """Bytes of unsigned integers that are as small as bounds let them be."""
    span = bounds.high - bounds.low
    return jaxprs.shape_of(var).size * next(size for size in (1, 2, 4, 8) if span < 1 << (8 * size))
