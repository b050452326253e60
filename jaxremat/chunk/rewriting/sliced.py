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

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxremat.base import compat
from jaxremat.base.compat import Eqn, Jaxpr, Var
from jaxremat.chunk.rewriting.finding import Finding, producers_of, readers_of
from jaxremat.chunk.tiling.subgraph import Need, TiledSubgraph, operand_windows, tiled_subgraph
from jaxremat.chunk.tiling.tiles import Span, Tiling, Window, dividing_size
from jaxremat.trace.jaxpr import dtype_of, has_effects, shape_of, size_bytes, vars_of

KIND = "slices of a large value"
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
        made = [v for eqn in jaxpr.eqns for v in eqn.outvars if _size(v) > self._entries]
        for anchor in {shape_of(v).shape: v for v in sorted(made, key=_size, reverse=True)}.values():
            if self._shape in (None, shape_of(anchor).shape):
                yield self._best(jaxpr, anchor)

    def _best(self, jaxpr: Jaxpr, anchor: Var) -> list[Finding]:
        """The part around a value, cut along the axis that takes the fewest loops, and has the smallest sums; where all
        that follows the axis is cut, along the one that most does."""
        least = 1 if self._whole else -(-_size(anchor) // _ALIKE)
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

    def part(self, anchor: Var, axis: int) -> _Sliceable | None:
        """All that has to be cut with a value, cut along an axis; None where something cannot be."""
        try:
            self._add(anchor, _slices(anchor, axis))
            while self._waiting:
                self._follow(self._waiting.pop())
        except _NeededWhole:
            return None
        if not self._axes.keys().isdisjoint(v for eqn in self._uncut for v in vars_of(eqn.invars)):
            return None
        return _Sliceable(self._jaxpr, anchor, self._axes, {**self._left, **self._between()}, self._sums)

    @property
    def _uncut(self) -> list[Eqn]:
        """Equations that make large values, and all of each at once."""
        made = ((self._made_by.get(v), _slices(v, axis)) for v, axis in self._axes.items())
        return [eqn for eqn, window in made if eqn is not None and operand_windows(eqn, window) is None]

    def _add(self, var: Var, window: Window) -> None:
        """Takes a value into the part."""
        axis = _axis_of(window)
        if axis is None or self._axes.get(var, axis) != axis:
            raise _NeededWhole
        if var not in self._axes:
            self._axes[var] = axis
            self._waiting.append(var)

    def _follow(self, var: Var) -> None:
        for need in _needs(self._made_by.get(var), _slices(var, self._axes[var])):
            self._add_large(need)
        for reader in self._readers.get(var, ()):
            if reader is not None or not self._may_return:
                self._read_by(reader)

    def _add_large(self, need: Need) -> None:
        if _size(need[0]) >= self._least:
            self._add(*need)

    def _read_by(self, reader: Eqn | None) -> None:
        if reader is None or has_effects(reader):
            raise _NeededWhole
        axis = _axis_of_result(reader, self._axes)
        if axis is None:
            self._sums[reader] = _summed(reader, self._axes)
            for need in self._sums[reader]:
                self._add_large(need)
        elif _size(reader.outvars[0]) >= self._least:
            self._add(reader.outvars[0], _slices(reader.outvars[0], axis))
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
        needs = [need for v, axis in self._axes.items() for need in _needs(self._made_by.get(v), _slices(v, axis))]
        needs += [need for each in self._sums.values() for need in each]
        while needs:
            var, window = needs.pop()
            if var in ahead and var not in back and _axis_of(window) == ahead[var]:
                back[var] = ahead[var]
                needs += _needs(self._made_by.get(var), window)
        return back


@dataclasses.dataclass(frozen=True, eq=False)
class _Sliceable:
    """A part of a jaxpr that can be computed slice by slice.

    Attributes:
      jaxpr: the program.
      anchor: the value around which it has grown.
      large: the axis of each value that never exists whole, but where it is a result.
      small: the axis of each other value that is computed in slices.
      sums: equations that add up slices, with the windows of their operands.
    """

    jaxpr: Jaxpr
    anchor: Var
    large: dict[Var, int]
    small: dict[Var, int]
    sums: dict[Eqn, tuple[Need, ...]]

    @functools.cached_property
    def axes(self) -> dict[Var, int]:
        return {**self.small, **self.large}

    @property
    def length(self) -> int:
        return shape_of(self.anchor).shape[self.large[self.anchor]]

    @property
    def sum_bytes(self) -> int:
        """Bytes of all that is added up."""
        return sum(size_bytes(eqn.outvars[0]) for eqn in self.sums)

    @property
    def holds_a_product(self) -> bool:
        """Whether any contraction is cut: what is computed entry by entry alone, a compiler fuses by itself."""
        made = {v for eqn in self.jaxpr.eqns if eqn.primitive.name == "dot_general" for v in eqn.outvars}
        return not made.isdisjoint(self.large)

    @functools.cached_property
    def windows(self) -> dict[Eqn, dict[Var, Window]]:
        """How each equation of the part reads its operands, those that are read in slices."""
        made_by = producers_of(self.jaxpr)
        cut = {made_by[v]: _needs(made_by[v], _slices(v, axis)) for v, axis in self.axes.items() if v in made_by}
        return {eqn: dict(needs) for eqn, needs in {**cut, **self.sums}.items() if needs}

    @functools.cached_property
    def rounds(self) -> dict[Var, int]:
        """The loop in which each value is known at the earliest: one later than what it needs of the part, but not
        slice by slice."""
        known: dict[Var, int] = {}
        made: set[Var] = set()
        for eqn in self.jaxpr.eqns:
            sliced = self.windows.get(eqn, {})
            reads = vars_of(eqn.invars)
            number = max((known.get(v, 0) + (v in made and v not in sliced) for v in reads), default=0)
            known.update(dict.fromkeys(eqn.outvars, number))
            if sliced:
                made.update(eqn.outvars)
        return known

    @functools.cached_property
    def read_by_others(self) -> dict[Var, None]:
        """What is computed in slices, and read otherwise, or returned."""
        readers = readers_of(self.jaxpr)
        made = [eqn.outvars[0] for eqn in self.jaxpr.eqns if eqn in self.windows and eqn not in self.sums]
        is_read = lambda var, by: by is None or var not in self.windows.get(by, {})
        return dict.fromkeys(v for v in made if any(is_read(v, by) for by in readers.get(v, ())))

    def findings(self, entries: int) -> list[Finding]:
        """One per loop that makes anything large; what is small and needed by a later loop is given by the earlier one,
        not made again."""
        size = dividing_size(self.length, max(1, entries * self.length // _size(self.anchor)))
        given, tiling = dict(self.read_by_others), Tiling((self.length,), (size,))
        found = []
        last = max((self.rounds[v] for v in (*given, *(eqn.outvars[0] for eqn in self.sums))), default=0)
        for number in range(last, -1, -1) if size < self.length else ():
            loop = self._loop(number, [v for v in given if self.rounds[v] == number], tiling)
            given |= dict.fromkeys(v for v in loop.reads if v in self.small)
            makes_large = any(eqn.outvars[0] in self.large for eqn in loop.cut.eqns)
            found += [self._finding(loop)] if makes_large else []
        return found

    def _loop(self, number: int, given: Sequence[Var], tiling: Tiling) -> _Loop:
        sums = {eqn: needs for eqn, needs in self.sums.items() if self.rounds[eqn.outvars[0]] == number}
        outputs = [*((v, _slices(v, self.axes[v])) for v in given), *(n for needs in sums.values() for n in needs)]

        def inside(var: Var, window: Window) -> bool:
            own = var in self.axes and window == _slices(var, self.axes[var])
            return own and (var in self.large or self.rounds[var] == number)

        made_by = producers_of(self.jaxpr)
        cut = tiled_subgraph(made_by, outputs, inside)
        return _Loop(made_by[self.anchor], cut, tuple(given), sums, tiling)

    def _finding(self, loop: _Loop) -> Finding:
        shape, where = shape_of(self.anchor).shape, compat.source_line(loop.place)
        return Finding(KIND, where, shape, size_bytes(self.anchor), reads=loop.reads, gives=loop.gives, emit=loop.run)


@dataclasses.dataclass(frozen=True, eq=False)
class _Loop:
    """A loop over slices.

    Attributes:
      place: the equation in whose place it stands.
      cut: what an iteration computes: slices of what is given, then what the sums read.
      given: what is stacked.
      sums: what is added up.
      tiling: the slices.
    """

    place: Eqn
    cut: TiledSubgraph
    given: tuple[Var, ...]
    sums: dict[Eqn, tuple[Need, ...]]
    tiling: Tiling

    @functools.cached_property
    def reads(self) -> tuple[Var, ...]:
        return tuple(dict.fromkeys(v for v, _ in self.cut.sources))

    @property
    def gives(self) -> tuple[Var, ...]:
        return *self.given, *(eqn.outvars[0] for eqn in self.sums)

    def run(self, values: Sequence[Any]) -> list[Any]:
        """What is given, and the sums."""
        env = dict(zip(self.reads, values, strict=True))

        def step(sums: list[jax.Array], number: jax.Array) -> tuple[list[jax.Array], list[jax.Array]]:
            start = [number * self.tiling.sizes[0]]
            blocks = [self.tiling.block(env[v], window, start) for v, window in self.cut.sources]
            found = self.cut.compute(blocks, start, self.tiling)
            slices, summed = found[: len(self.given)], iter(found[len(self.given) :])
            shares = [compat.bind(eqn, [next(summed) for _ in needs])[0] for eqn, needs in self.sums.items()]
            return [total + share.astype(total.dtype) for total, share in zip(sums, shares)], slices

        with compat.at_position_of(self.place):
            zeros = [jnp.zeros(shape_of(eqn.outvars[0]).shape, _wide(eqn.outvars[0])) for eqn in self.sums]
            numbers = jnp.arange(self.tiling.counts[0], dtype=jnp.int32)
            sums, stacked = lax.scan(step, zeros, numbers)
            given = [_joined(x, dict(self.cut.outputs)[v]) for v, x in zip(self.given, stacked)]
            return [*given, *(x.astype(dtype_of(eqn.outvars[0])) for eqn, x in zip(self.sums, sums))]


class _NeededWhole(Exception):
    """Something is computed of the whole axis at once."""


def _size(var: Var) -> int:
    return math.prod(shape_of(var).shape)


def _slices(var: Var, axis: int) -> Window:
    """The window of some slices along an axis."""
    return tuple(Span(0) if i == axis else None for i in range(len(shape_of(var).shape)))


def _axis_of(window: Window) -> int | None:
    """The axis that a window of slices follows; None where it follows none, or entries further on."""
    spans = [(i, span) for i, span in enumerate(window) if span is not None]
    return spans[0][0] if len(spans) == 1 and spans[0][1].offset == 0 else None


def _needs(eqn: Eqn | None, window: Window) -> list[Need]:
    """The variables that an equation reads in slices for slices of its result."""
    windows = operand_windows(eqn, window) if eqn is not None else None
    return [(a, w) for a, w in zip(eqn.invars, windows) if isinstance(a, Var) and any(w)] if eqn and windows else []


def _axis_of_result(eqn: Eqn, axes: dict[Var, int]) -> int | None:
    """The axis of a result whose slices are computed of those that are known; None where there is none."""
    for axis in range(len(shape_of(eqn.outvars[0]).shape)) if len(eqn.outvars) == 1 else ():
        windows = operand_windows(eqn, _slices(eqn.outvars[0], axis)) or ()
        own = [axes[v] == _axis_of(w) for v, w in zip(eqn.invars, windows) if isinstance(v, Var) and v in axes]
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
            return tuple((v, _slices(v, axis)) for v, axis in operands)
    raise _NeededWhole


def _wide(var: Var) -> Any:
    """The type in which a sum is added up, slice after slice: at least float32."""
    dtype = dtype_of(var)
    return jnp.promote_types(dtype, jnp.float32) if jnp.issubdtype(dtype, jnp.inexact) else dtype


def _joined(stack: jax.Array, window: Window) -> jax.Array:
    """The array whose slices were stacked."""
    axis = _axis_of(window) or 0
    moved = jnp.moveaxis(stack, 0, axis)
    return moved.reshape(*moved.shape[:axis], -1, *moved.shape[axis + 2 :])
