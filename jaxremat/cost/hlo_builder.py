"""A program of operations under way, as the rules of lowering put it together."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Mapping, Sequence

from jaxremat.backends.backend import Backend
from jaxremat.base.compat import Var
from jaxremat.cost.hlo_ops import Facts, Op, Template, Templates, shape_of
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


class HloBuilder:
    """A program under way.

    Attributes:
      ops, reads, equations, takes_over: as in `HloProgram`.
      only_written: for results of loops that a body only writes into, what they begin as.
      backend: whose compiler it is for.
      templates: what is known of equations.
      equation: the top-level equation that is lowered now.
      at: the operation of each variable of the listing that is lowered now.
      readers: tells how many read each of them.
      is_inside: whether that listing is what an equation calls.
      heard: which of its own variables were asked for as read once, and whether they are.
    """

    def __init__(self, backend: Backend, templates: Templates) -> None:
        self.ops: list[Op] = []
        self.reads: list[tuple[int, ...]] = []
        self.equations: list[int] = []
        self.takes_over: dict[int, int] = {}
        self.only_written: dict[int, int] = {}
        self.backend, self.templates = backend, templates
        self.equation = -1
        self.at: list[int] = []
        self.readers: Callable[[], Sequence[int]] = tuple
        self.is_inside = False
        self.heard: dict[int, bool] = {}
        self._merged: dict[tuple[int, tuple[int, ...]], int] = {}
        self._constants: dict[int, int] = {}
        self._expressions: dict[Hashable, int] = {}

    def program(self, outputs: Sequence[int], op_of: Mapping[Var, int] | None = None) -> HloProgram:
        """What was put together."""
        if self.only_written:
            self._without_idle_stacks(outputs)
        return HloProgram(self.ops, self.reads, self.equations, self.takes_over, tuple(outputs), op_of or {})

    def make_input(self, var: Var) -> int:
        """What comes from outside."""
        return self.append(self.templates.like("input", var), (), -1)

    def operands(self, facts: Facts, reads: Sequence[Slot]) -> tuple[int, ...]:
        """What an equation reads; numbers as arrays of their own shape."""
        at = self.at
        pairs = enumerate(reads)
        return tuple([at[read] if type(read) is int else self.operand(facts, k, read) for k, read in pairs])

    def operand(self, facts: Facts, position: int, read: Slot, shape: tuple[int, ...] | None = None) -> int:
        """One of the operands; a number as an array of a shape, or of its own."""
        if isinstance(read, int):
            return self.at[read]
        return self.constant(facts.literal(position, shape_of(read) if shape is None else shape))

    def found(self, slot: Slot, at: Sequence[int]) -> int:
        """The operation that stands in a slot; a number becomes one."""
        return at[slot] if isinstance(slot, int) else self.constant(self.templates.literal(slot, shape_of(slot)))

    def fenced(self, reads: tuple[int, ...], like: Sequence[Var]) -> list[int]:
        """The same values behind an optimization barrier."""
        fence = self.append(_FENCE, reads)
        return [self.append(self.templates.like("fenced", var), (fence, read)) for var, read in zip(like, reads)]

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

    def expression(self, parts: Hashable) -> Hashable:
        """One identity per distinct expression of constants, which does not grow with the expression."""
        return "expression", self._expressions.setdefault(parts, len(self._expressions))

    def spread(self, constant: Hashable, facts: Facts) -> int:
        """A constant over the equation's result."""
        return self.constant(self.templates.spread(facts.result, constant))

    def constant(self, template: Template) -> int:
        """A constant, of which there is one, whichever equation reads it."""
        known = self._constants.get(template.identity)
        if known is None:
            known = self._constants[template.identity] = self.append(template.op, (), -1)
        return known

    def widened(self, read: int, facts: Facts) -> int:
        """An operand spread over the equation's result."""
        op = self.ops[read]
        if op.elements == facts.elements:
            return read
        if op.constant is not None:
            like = self.templates.resized(op, "broadcast", facts.shape, None).op
            return self.constant(self.templates.spread(like, op.constant))
        spread = self.templates.resized(op, "broadcast", facts.shape, ("to", facts.shape))
        return self.merge(spread, (read,))

    def merge(self, template: Template, reads: tuple[int, ...], equation: int | None = None) -> int:
        """Adds an operation unless there is an equal one, whatever the order of operands that may change places."""
        key = template.identity, tuple(sorted(reads)) if template.commutes else reads
        known = self._merged.get(key)
        if known is None:
            known = self._merged[key] = self.append(template.op, reads, equation)
        return known

    def append(self, op: Op, reads: tuple[int, ...], equation: int | None = None) -> int:
        """Adds an operation; of the equation that is lowered now, unless another is named."""
        ops = self.ops
        ops.append(op)
        self.reads.append(reads)
        self.equations.append(self.equation if equation is None else equation)
        return len(ops) - 1


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
