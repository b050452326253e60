"""A program of operations under way, as the rules of lowering put it together."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from jaxremat.backends.backend import Backend
from jaxremat.base.compat import Var
from jaxremat.cost.hlo_ops import Facts, Op, Templates, shape_of
from jaxremat.cost.hlo_orders import OrderedOperations
from jaxremat.cost.hlo_views import View
from jaxremat.trace.listing import Line, Listing, Slot

_FENCE = Op("barrier", (), "", 0)


@dataclasses.dataclass(frozen=True, eq=False)
class HloProgram:
    """Operations in executable order, inputs first.

    Attributes:
      ops: what each of them does.
      reads: for each, the operations whose results it reads.
      equations: for each, the top-level equation that it comes from; -1 for inputs and constants.
      takes_over: for the results of loops, the operation whose buffer they live in (that of a carry).
      outputs: operations whose results the program returns.
      op_of: the operation that computes each variable, where each is computed once.
    """

    ops: Sequence[Op]
    reads: Sequence[tuple[int, ...]]
    equations: Sequence[int]
    takes_over: Mapping[int, int]
    outputs: tuple[int, ...]
    op_of: Mapping[Var, int] = dataclasses.field(default_factory=dict)


class HloBuilder(OrderedOperations):
    """A program under way.

    Attributes:
      takes_over: as in `HloProgram`.
      only_written: for results of loops that a body only writes into, what they begin as.
      at: the operation of each variable of the listing that is lowered now; a view where it lies in another order.
      readers: tells how many read each of them.
      is_inside: whether that listing is what an equation calls.
      heard: which of its own variables were asked for as read once, and whether they are.
    """

    def __init__(self, backend: Backend, templates: Templates) -> None:
        super().__init__(backend, templates)
        self.takes_over: dict[int, int] = {}
        self.only_written: dict[int, int] = {}
        self.at: list[int] = []
        self.readers: Callable[[], Sequence[int]] = tuple
        self.is_inside = False
        self.heard: dict[int, bool] = {}

    def program(self, outputs: Sequence[int], op_of: Mapping[Var, int] | None = None) -> HloProgram:
        """What was put together."""
        if self.only_written:
            self._without_idle_stacks(outputs)
        return HloProgram(self.ops, self.reads, self.equations, self.takes_over, tuple(outputs), op_of or {})

    def make_input(self, var: Var) -> int:
        """What comes from outside."""
        return self.append(self.templates.like("input", var), (), -1)

    def operands(self, facts: Facts, reads: Sequence[Slot]) -> tuple[int, ...]:
        """What an equation reads, with its dimensions in order; numbers as arrays of their own shape."""
        return tuple([self.in_order(read) for read in self.as_it_lies(facts, reads)])

    def as_it_lies(self, facts: Facts, reads: Sequence[Slot]) -> tuple[int, ...]:
        """What an equation reads, however it lies; numbers as arrays of their own shape."""
        at = self.at
        pairs = enumerate(reads)
        return tuple([self.lying(at[read]) if type(read) is int else self.operand(facts, k, read) for k, read in pairs])

    def operand(self, facts: Facts, position: int, read: Slot, shape: tuple[int, ...] | None = None) -> int:
        """One of the operands; a number as an array of a shape, or of its own."""
        if isinstance(read, int):
            return self.lying(self.at[read])
        return self.constant(facts.literal(position, shape_of(read) if shape is None else shape))

    def found(self, slot: Slot, at: Sequence[int]) -> int:
        """The operation that stands in a slot; a number becomes one."""
        if isinstance(slot, int):
            return self.lying(at[slot])
        return self.constant(self.templates.literal(slot, shape_of(slot)))

    def fenced(self, reads: tuple[int, ...], like: Sequence[Var]) -> list[int]:
        """The same values behind an optimization barrier, as they lie before it."""
        fence = self.append(_FENCE, tuple(map(int, reads)))
        made = [self.append(self.templates.like("fenced", var), (fence, int(read))) for var, read in zip(like, reads)]
        return [read.of(index) if isinstance(read, View) else index for read, index in zip(reads, made)]

    def _without_idle_stacks(self, outputs: Sequence[int]) -> None:
        """Takes from loops what they only write into, where nobody reads it."""
        read = {read for reads in self.reads for read in reads}.union(outputs)
        for part, stack in self.only_written.items():
            if part not in read:
                (loop,) = self.reads[part]
                self.reads[loop] = tuple(read for read in self.reads[loop] if read != stack)

    def is_read_once(self, slot: Slot) -> bool:
        """Whether only one equation reads what stands there, once."""
        once = isinstance(slot, int) and self.readers()[slot] == 1
        if isinstance(slot, int) and not self.is_inside:
            self.heard[slot] = once
        return once

    def copy(self, readers: Callable[[], Sequence[int]]) -> HloBuilder:
        """The same program, to go on otherwise."""
        other = HloBuilder(self.backend, self.templates)
        for name, value in vars(self).items():
            if isinstance(value, list | dict):
                setattr(other, name, value.copy())
        other.readers = readers
        return other


@dataclasses.dataclass(frozen=True, eq=False)
class Beginning:
    """The first lines of a listing, lowered.

    Attributes:
      inputs, lines: of the listing.
      hlo: the program up to there.
    """

    inputs: tuple[Var, ...]
    lines: Sequence[Line]
    hlo: HloBuilder

    def serves(self, listing: Listing, lines: Sequence[Line], readers: Callable[[], Sequence[int]]) -> bool:
        """Whether a listing with such first lines begins alike: lowering asks which results are read once."""
        if self.lines != lines or self.inputs != tuple(listing.inputs):
            return False
        return all((readers()[slot] == 1) == once for slot, once in self.hlo.heard.items())
