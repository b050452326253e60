"""Operations one after the other; equal ones are merged."""

from __future__ import annotations

from collections.abc import Hashable

from jaxremat.backends.backend import Backend
from jaxremat.cost.hlo_ops import Facts, Op, Template, Templates


class Operations:
    """Operations under way.

    Attributes:
      ops, reads, equations: as in `HloProgram`.
      backend: whose compiler it is for.
      templates: what is known of equations.
      equation: the top-level equation that is lowered now.
    """

    def __init__(self, backend: Backend, templates: Templates) -> None:
        self.ops: list[Op] = []
        self.reads: list[tuple[int, ...]] = []
        self.equations: list[int] = []
        self.backend, self.templates = backend, templates
        self.equation = -1
        self._merged: dict[tuple[int, tuple[int, ...]], int] = {}
        self._constants: dict[int, int] = {}
        self._expressions: dict[Hashable, int] = {}

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
        return self.merge(spread, (int(read),))

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
