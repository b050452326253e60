"""Parts of a program that has been differentiated, some slices of an axis at a time: no pattern says what they are.

A large value (logits, scores, hidden values, or simply what a batch leaves) is followed along one of its axes, to what
it is computed from and to what is computed of it, forward and backward alike, as long as each slice is computed by
itself (`chunk.tiling.subgraph`), and until something smaller is reached, or a sum over the axis. What the part leaves
is computed by a loop over slices that adds up its sums, so that the large values never exist whole. Where one thing
that it leaves is needed, by way of other equations, for another (the cotangent of a layer's result), a second loop
computes the later one, and makes the large values a second time, slice by slice.

Values are the same up to the order in which sums are added up.
"""

from __future__ import annotations

from collections.abc import Iterator

from jaxremat.base.compat import Eqn, Jaxpr, Var
from jaxremat.chunk.rewriting.finding import Finding, producers_of, readers_of
from jaxremat.chunk.rewriting.sliced_part import SlicedPart, axis_of, entries_of, needs_of, slices_along
from jaxremat.chunk.tiling.subgraph import Need, operand_windows
from jaxremat.chunk.tiling.tiles import Window
from jaxremat.trace.jaxpr import has_effects, shape_of, vars_of

WHOLE = "slices of a batch"

_ALIKE = 2
"""What holds at least this part of a large value's entries is cut with it: gates and values are often one product;
benchmarks/constants.py."""


class SliceFinder:
    """Finds the first part of a jaxpr, the largest value first, whose large values need not exist whole.

    Args:
      entries: about so many of the large value at a time; what holds no more is not cut.
      whole: whether everything that follows the axis is cut with the large value, however small it is: a step over a
        batch becomes one over slices of it.
      shape: of the large value; None for any.
    """

    def __init__(self, entries: int, *, whole: bool = False, shape: tuple[int, ...] | None = None) -> None:
        self._entries, self._whole, self._shape = entries, whole, shape

    def body_of(self, eqn: Eqn) -> Jaxpr | None:
        return None

    def __call__(self, jaxpr: Jaxpr) -> list[Finding]:
        return next(filter(None, self._found(jaxpr)), [])

    def _found(self, jaxpr: Jaxpr) -> Iterator[list[Finding]]:
        made = [v for eqn in jaxpr.eqns for v in eqn.outvars if entries_of(v) > self._entries]
        for anchor in {shape_of(v).shape: v for v in sorted(made, key=entries_of, reverse=True)}.values():
            if self._shape in (None, shape_of(anchor).shape):
                yield self._best(jaxpr, anchor)

    def _best(self, jaxpr: Jaxpr, anchor: Var) -> list[Finding]:
        """The part around a value, cut along the axis that takes the fewest loops, and has the smallest sums; where all
        that follows the axis is cut, along the one that most does."""
        least = 1 if self._whole else -(-entries_of(anchor) // _ALIKE)
        axes = range(len(shape_of(anchor).shape))
        grown = (_Growth(jaxpr, least, may_return=self._whole).part(anchor, axis) for axis in axes)
        parts = [part for part in grown if part is not None and part.holds_a_product]
        most = max((len(part.large) for part in parts), default=0)
        cut = [part for part in parts if not self._whole or len(part.large) == most]
        loops = ((part.findings(self._entries), part.sum_bytes) for part in cut)
        found = [pair for pair in loops if pair[0]]
        return min(found, key=lambda pair: (len(pair[0]), pair[1]))[0] if found else []


class _Growth:
    """A part of a jaxpr under way.

    Args:
      jaxpr: the program.
      least: values of at least so many entries belong to the part; smaller ones are read and left by it.
      may_return: whether such values may be results of the program.
    """

    def __init__(self, jaxpr: Jaxpr, least: int, *, may_return: bool) -> None:
        self._jaxpr, self._least, self._may_return = jaxpr, least, may_return
        self._made_by, self._readers = producers_of(jaxpr), readers_of(jaxpr)
        self._axes: dict[Var, int] = {}
        self._left: dict[Var, int] = {}
        self._sums: dict[Eqn, tuple[Need, ...]] = {}
        self._waiting: list[Var] = []

    def part(self, anchor: Var, axis: int) -> SlicedPart | None:
        """All that has to be cut with a value, cut along an axis; None where something cannot be."""
        try:
            self._add(anchor, slices_along(anchor, axis))
            while self._waiting:
                self._follow(self._waiting.pop())
        except _NeededWhole:
            return None
        if not self._axes.keys().isdisjoint(v for eqn in self._uncut for v in vars_of(eqn.invars)):
            return None
        return SlicedPart(self._jaxpr, anchor, self._axes, {**self._left, **self._between()}, self._sums)

    @property
    def _uncut(self) -> list[Eqn]:
        """Equations that make large values, and all of each at once."""
        made = ((self._made_by.get(v), slices_along(v, axis)) for v, axis in self._axes.items())
        return [eqn for eqn, window in made if eqn is not None and operand_windows(eqn, window) is None]

    def _add(self, var: Var, window: Window) -> None:
        """Takes a value into the part."""
        axis = axis_of(window)
        if axis is None or self._axes.get(var, axis) != axis:
            raise _NeededWhole
        if var not in self._axes:
            self._axes[var] = axis
            self._waiting.append(var)

    def _follow(self, var: Var) -> None:
        for need in needs_of(self._made_by.get(var), slices_along(var, self._axes[var])):
            self._add_large(need)
        for reader in self._readers.get(var, ()):
            if reader is not None or not self._may_return:
                self._read_by(reader)

    def _add_large(self, need: Need) -> None:
        if entries_of(need[0]) >= self._least:
            self._add(*need)

    def _read_by(self, reader: Eqn | None) -> None:
        if reader is None or has_effects(reader):
            raise _NeededWhole
        axis = _axis_of_result(reader, self._axes)
        if axis is None:
            self._sums[reader] = _summed(reader, self._axes)
            for need in self._sums[reader]:
                self._add_large(need)
        elif entries_of(reader.outvars[0]) >= self._least:
            self._add(reader.outvars[0], slices_along(reader.outvars[0], axis))
        else:
            self._left[reader.outvars[0]] = axis

    def _between(self) -> dict[Var, int]:
        """Smaller values by which what the part leaves leads back into it, slice by slice."""
        ahead = dict(self._left)
        for eqn in self._jaxpr.eqns:
            out = eqn.outvars[0] if len(eqn.outvars) == 1 else None
            if out in self._axes or out in ahead or eqn.primitive.name == "dot_general" or has_effects(eqn):
                continue
            axis = _axis_of_result(eqn, ahead)
            if axis is not None:
                ahead[eqn.outvars[0]] = axis
        back: dict[Var, int] = {}
        needs = [
            need for v, axis in self._axes.items() for need in needs_of(self._made_by.get(v), slices_along(v, axis))
        ]
        needs += [need for each in self._sums.values() for need in each]
        while needs:
            var, window = needs.pop()
            if var in ahead and var not in back and axis_of(window) == ahead[var]:
                back[var] = ahead[var]
                needs += needs_of(self._made_by.get(var), window)
        return back


class _NeededWhole(Exception):
    """Something is computed of the whole axis at once."""


def _axis_of_result(eqn: Eqn, axes: dict[Var, int]) -> int | None:
    """The axis of a result whose slices are computed of those that are known; None where there is none."""
    for axis in range(len(shape_of(eqn.outvars[0]).shape)) if len(eqn.outvars) == 1 else ():
        windows = operand_windows(eqn, slices_along(eqn.outvars[0], axis)) or ()
        own = [axes[v] == axis_of(w) for v, w in zip(eqn.invars, windows) if isinstance(v, Var) and v in axes]
        if own and all(own):
            return axis
    return None


def _summed(eqn: Eqn, axes: dict[Var, int]) -> tuple[Need, ...]:
    """The operands of a sum over the axis, with their windows."""
    pairs: list[tuple[int, ...]] = []
    if eqn.primitive.name == "reduce_sum":
        pairs = [(int(axis),) for axis in eqn.params["axes"]]
    elif eqn.primitive.name == "dot_general":
        pairs = list(zip(*eqn.params["dimension_numbers"][0]))
    for pair in pairs:
        operands = [(v, axis) for v, axis in zip(eqn.invars, pair, strict=True) if isinstance(v, Var)]
        if len(operands) == len(pair) and all(axes.get(v, axis) == axis for v, axis in operands):
            return tuple((v, slices_along(v, axis)) for v, axis in operands)
    raise _NeededWhole
