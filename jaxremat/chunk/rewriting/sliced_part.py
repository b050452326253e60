"""A part of a program whose large values never exist whole: loops over slices of an axis, and what they add up."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxremat.base import compat
from jaxremat.base.compat import Eqn, Jaxpr, Var
from jaxremat.chunk.rewriting.finding import Finding, producers_of, readers_of
from jaxremat.chunk.tiling.subgraph import Need, TiledSubgraph, operand_windows, tiled_subgraph
from jaxremat.chunk.tiling.tiles import Span, Tiling, Window, dividing_size
from jaxremat.trace.jaxpr import dtype_of, shape_of, size_bytes, vars_of

KIND = "slices of a large value"


@dataclasses.dataclass(frozen=True, eq=False)
class SlicedPart:
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
        cut = {made_by[v]: needs_of(made_by[v], slices_along(v, axis)) for v, axis in self.axes.items() if v in made_by}
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
        size = dividing_size(self.length, max(1, entries * self.length // entries_of(self.anchor)))
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
        outputs = [*((v, slices_along(v, self.axes[v])) for v in given), *(n for needs in sums.values() for n in needs)]

        def inside(var: Var, window: Window) -> bool:
            own = var in self.axes and window == slices_along(var, self.axes[var])
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


def entries_of(var: Var) -> int:
    return math.prod(shape_of(var).shape)


def slices_along(var: Var, axis: int) -> Window:
    """The window of some slices along an axis."""
    return tuple(Span(0) if i == axis else None for i in range(len(shape_of(var).shape)))


def axis_of(window: Window) -> int | None:
    """The axis that a window of slices follows; None where it follows none, or entries further on."""
    spans = [(i, span) for i, span in enumerate(window) if span is not None]
    return spans[0][0] if len(spans) == 1 and spans[0][1].offset == 0 else None


def needs_of(eqn: Eqn | None, window: Window) -> list[Need]:
    """The variables that an equation reads in slices for slices of its result."""
    windows = operand_windows(eqn, window) if eqn is not None else None
    return [(a, w) for a, w in zip(eqn.invars, windows) if isinstance(a, Var) and any(w)] if eqn and windows else []


def _wide(var: Var) -> Any:
    """The type in which a sum is added up, slice after slice: at least float32."""
    dtype = dtype_of(var)
    return jnp.promote_types(dtype, jnp.float32) if jnp.issubdtype(dtype, jnp.inexact) else dtype


def _joined(stack: jax.Array, window: Window) -> jax.Array:
    """The array whose slices were stacked."""
    axis = axis_of(window) or 0
    moved = jnp.moveaxis(stack, 0, axis)
    return moved.reshape(*moved.shape[:axis], -1, *moved.shape[axis + 2 :])
