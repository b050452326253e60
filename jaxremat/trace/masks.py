"""Masks of positions: what a program computes from indices alone, and spreads over batches and heads.

XLA:GPU chooses which rows a kernel takes together. Where the kernel compares indices itself, those are the rows that
share a mask, far apart, and it took up to twice as long as one that reads the mask (benchmarks/results/gpu.md).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence, Set
from typing import Any

from jaxremat.base.compat import Atom, Eqn, Var
from jaxremat.trace import activity
from jaxremat.trace import jaxpr as jaxprs


@dataclasses.dataclass(frozen=True, eq=False)
class Masks:
    """The masks of a program.

    Attributes:
      numbers: equations that spread numbers, or count.
      eqns: those that compute with indices, in order.
      made: the masks: what these make and others only spread along more axes.
    """

    numbers: tuple[Eqn, ...] = ()
    eqns: tuple[Eqn, ...] = ()
    made: frozenset[Var] = frozenset()

    @property
    def in_order(self) -> tuple[Var, ...]:
        """The masks in the order in which they are made."""
        return tuple(v for eqn in self.eqns for v in eqn.outvars if v in self.made)


NO_MASKS = Masks()


def pair_masks_among(eqns: Sequence[Eqn], results: Sequence[Atom]) -> Masks:
    """Masks over pairs of positions alone, as others read them: what says which of two may see the other."""
    found = masks_among(eqns, results)
    computed = set(found.eqns)
    read = {v for eqn in eqns if eqn not in computed for v in jaxprs.vars_of(eqn.invars)}
    made = frozenset(v for v in found.made & read if _is_of_pairs(v))
    needed, behind = set(made), []
    for eqn in reversed(found.eqns):
        if not needed.isdisjoint(eqn.outvars):
            needed.update(jaxprs.vars_of(eqn.invars))
            behind.append(eqn)
    return Masks(found.numbers, tuple(reversed(behind)), made)


def masks_among(eqns: Sequence[Eqn], results: Sequence[Atom]) -> Masks:
    """The masks that equations make, of which a program returns some results."""
    numbers = jaxprs.constants_among(eqns)
    anywhere = {v for eqn in numbers for v in eqn.outvars}
    indices = {v for eqn in numbers if eqn.primitive.name == "iota" for v in eqn.outvars}
    computed, others = [], []
    for eqn in eqns:
        if is_invariant(eqn, indices, anywhere - indices):
            indices.update(eqn.outvars)
            computed.append(eqn)
        elif anywhere.isdisjoint(eqn.outvars):
            others.append(eqn)
    as_they_are = set(jaxprs.vars_of(results))
    for eqn in others:
        smallest = min(map(_elements, eqn.outvars), default=0)
        as_they_are.update(v for v in jaxprs.vars_of(eqn.invars) if _elements(v) >= smallest)
    for eqn in reversed(computed):
        if not as_they_are.isdisjoint(eqn.outvars):
            as_they_are.update(jaxprs.vars_of(eqn.invars))
    return Masks(numbers, tuple(computed), frozenset(v for eqn in computed for v in eqn.outvars) - as_they_are)


def is_invariant(eqn: Eqn, constant: Set[Var], anywhere: Set[Var] = frozenset()) -> bool:
    """Whether an equation reads constants, beside what is available anywhere, and makes nothing larger of them."""
    read = set(jaxprs.vars_of(eqn.invars)) - anywhere
    if not read or not read <= constant or jaxprs.has_effects(eqn) or _narrows(eqn):
        return False
    return sum(map(jaxprs.size_bytes, eqn.outvars)) <= sum(map(jaxprs.size_bytes, read))


def _is_of_pairs(var: Var) -> bool:
    shape = jaxprs.shape_of(var)
    return shape.dtype == bool and sum(length > 1 for length in shape.shape) > 1


def _elements(var: Var) -> int:
    aval: Any = var.aval
    return int(getattr(aval, "size", 0))


def _narrows(eqn: Eqn) -> bool:
    """Whether gradients would be summed over iterations in fewer bits than the constant has."""
    narrow = [jaxprs.shape_of(v).dtype.itemsize for v in eqn.outvars if activity.is_differentiable(v)]
    wide = [jaxprs.shape_of(v).dtype.itemsize for v in jaxprs.vars_of(eqn.invars) if activity.is_differentiable(v)]
    return bool(narrow and wide) and min(narrow) < max(wide)
