"""The operations that equations become, and what is asked of an equation again and again while it is lowered.

A program that runs an equation five times, and twenty programs of the same equations, ask the same things: they are
worked out once for all of them.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxremat.base import compat
from jaxremat.base.compat import Atom, Eqn, Jaxpr, Literal, Var
from jaxremat.cost.flops import equation_flops, trip_count
from jaxremat.trace import jaxpr as jaxprs
from jaxremat.trace.listing import Listing, listing_of
from jaxremat.trace.primitives import COMMUTATIVE, LOOPS

CONTRACTIONS = frozenset({"dot", "conv"})
SCATTERS = frozenset({"scatter", *(f"scatter-{name}" for name in ("add", "sub", "mul", "min", "max"))})
"""What writes into the first of what it reads, at indices."""
Partition = tuple[int, int, int]
_KINDS = {"add_any": "add", "broadcast_in_dim": "broadcast"}


@dataclasses.dataclass(frozen=True, eq=False)
class Computation:
    """What a loop or a branch runs.

    Attributes:
      jaxpr: one iteration.
      own_inputs: how many of its inputs are there as they are; the others are slices of stacks.
      own_outputs: how many of its outputs are handed on as they are; the others are written into stacks.
    """

    jaxpr: Jaxpr
    own_inputs: int
    own_outputs: int

    @property
    def has_stacks(self) -> bool:
        """Whether it reads slices of stacks, or writes into some."""
        return self.own_inputs < len(self.jaxpr.invars) or self.own_outputs < len(self.jaxpr.outvars)


def bodies_of(eqn: Eqn) -> tuple[Computation, ...]:
    """The bodies of a loop or of a conditional; none of anything else."""
    name = eqn.primitive.name
    if name not in LOOPS:
        return ()
    if name == "scan":
        num_consts, num_carry = compat.scan_arity(eqn)
        return tuple(Computation(jaxpr, num_consts + num_carry, num_carry) for jaxpr in jaxprs.subjaxprs(eqn))
    return tuple(map(alone, jaxprs.subjaxprs(eqn)))


def alone(jaxpr: Jaxpr) -> Computation:
    """A program that neither slices nor stacks."""
    return Computation(jaxpr, len(jaxpr.invars), len(jaxpr.outvars))


class Matrices(NamedTuple):
    """What a contraction multiplies: a batch of matrices by another.

    Attributes:
      batches, rows, columns, contracted: sizes; rows and columns are those of the result.
      contracts: the dimensions of both operands that are contracted.
      is_flipped: the second operand has the rows.
    """

    batches: int
    rows: int
    columns: int
    contracted: int
    contracts: tuple[tuple[int, ...], ...]
    is_flipped: bool = False

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        return self.batches, self.rows, self.columns, self.contracted

    @property
    def flipped(self) -> Matrices:
        """The same with its result transposed."""
        return self._replace(rows=self.columns, columns=self.rows, is_flipped=not self.is_flipped)


@dataclasses.dataclass(frozen=True, eq=False)
class Op:
    """What an operation with one result does; many operations of a program may be one of these.

    Attributes:
      kind: a primitive's name, or one of `input`, `broadcast`, `bitcast`, `reduce`, `dot`, `conv`, `part`, `barrier`.
      shape, dtype, size_bytes: of its result.
      in_library: a contraction, reduction or window that a library computes.
      takes_addend: a convolution to whose result the library adds an array, if that is all that is done with it.
      constant: identity of a broadcast literal, or None.
      bodies: what it runs (loops, branches).
      joins: of a concatenation, the dimension along which arrays lie side by side.
      turns_rows: a transpose of the last dimension.
      matrices: what a product multiplies.
      is_turned: a product whose result is read in another order of its dimensions.
      combines: of a reduction or a window, the primitive by which two entries become one.
      partition: of a reduction, the sizes of what is before the dimensions that it reduces, of these, and after.
      window: how many entries lie in a window that slides.
      unread_bytes: of another result, which is written and nobody reads.
      flops, runs: of a contraction, the FLOPs; of a loop, how often its body runs.
    """

    kind: str
    shape: tuple[int, ...]
    dtype: str
    size_bytes: int
    in_library: bool = False
    takes_addend: bool = False
    constant: Hashable = None
    bodies: tuple[Computation, ...] = ()
    joins: int = 0
    turns_rows: bool = False
    matrices: Matrices | None = None
    is_turned: bool = False
    combines: str = ""
    partition: Partition = (1, 1, 1)
    window: int = 1
    unread_bytes: int = 0
    flops: float = 0.0
    runs: int = 1

    @functools.cached_property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def splits_rows(self) -> bool:
        """Whether it is a concatenation along the last dimension."""
        return self.kind == "concatenate" and self.joins == len(self.shape) - 1 > 0


_NOTHING = Op("broadcast", (), "", 0)


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class Template:
    """An operation of which equal ones are merged.

    Attributes:
      op: the operation.
      identity: the same number for all that do the same.
      commutes: its operands may change places.
    """

    op: Op
    identity: int
    commutes: bool


@dataclasses.dataclass(frozen=True, slots=True)
class OperandLayout:
    """How the operands of a product lie.

    Attributes:
      batches: the batch dimensions of both.
      batch_leads: for both, whether batch dimensions come before all others, but for those of size 1.
      is_canonical: for both, whether nothing moves when they become matrices: contracted dimensions come last in the
        first and first in the second, or there is one of them and one that is left (`dot_decomposer.cc`).
      copy_order: for both, the dimensions that tell a copy from others, in its order: the batch, which leads; and all,
        where several become the rows or columns of a matrix. Else products read rows and columns in either order.
      contracts_rows: whether the last dimensions of the first are contracted.
      is_matrix: whether rows and columns are left.
    """

    batches: tuple[tuple[int, ...], ...]
    batch_leads: tuple[bool, ...]
    is_canonical: tuple[bool, ...]
    copy_order: tuple[tuple[int, ...], ...]
    contracts_rows: bool
    is_matrix: bool


class Facts:
    """What lowering asks of an equation.

    Attributes:
      eqn: the equation.
      name: of its primitive.
      kind: of its usual operation.
      place: among the equations, in the order in which they were met first: that of the program without recomputation.
      result: an array like its first result, of which shape, dtype and elements are taken.
    """

    def __init__(self, eqn: Eqn, place: int, templates: Templates) -> None:
        self.eqn, self.place, self.name, self._templates = eqn, place, compat.primitive_name(eqn), templates
        self.kind = _KINDS.get(self.name, self.name)
        self.result = templates.like("broadcast", eqn.outvars[0]) if eqn.outvars else _NOTHING
        self.shape, self.dtype, self.elements = self.result.shape, self.result.dtype, self.result.elements
        self._made: dict[Hashable, Template] = {}
        self._layouts: dict[Hashable, OperandLayout] = {}
        self._asked: dict[Callable[[Eqn], Any], Any] = {}

    @functools.cached_property
    def params(self) -> int:
        """What tells the equation from another of the same primitive, as a number."""
        return self._templates.number(_params_key(self.eqn))

    @functools.cached_property
    def body(self) -> Jaxpr | None:
        """What it calls, if it is a call."""
        return jaxprs.computed_body(self.eqn)

    @functools.cached_property
    def listing(self) -> Listing:
        """The body of a call."""
        assert self.body is not None
        return listing_of(self.body)[0]

    @functools.cached_property
    def usual(self) -> Template:
        """The operation that the equation is, where nothing is special."""
        return self.template(self.kind, self.params)

    def op(self, kind: str, **more: Any) -> Op:
        """An operation with the equation's first result."""
        if kind in CONTRACTIONS:
            more["flops"] = equation_flops(self.eqn)
        return dataclasses.replace(self.result, kind=kind, **more)

    def template(self, kind: str, key: Hashable = "", **more: Hashable) -> Template:
        """The same where equal ones are merged, told by a key from others of the kind."""
        made = kind, key, *more.values()
        if made not in self._made:
            self._made[made] = self._templates.merged(self.op(kind, **more), key)
        return self._made[made]

    def wide_product(self, kind: str, *, in_library: bool) -> Template:
        """A contraction in float32, whatever the equation's dtype."""
        made = "wide", kind, in_library
        if made not in self._made:
            op = self.op(kind, in_library=in_library, dtype="float32", size_bytes=4 * self.elements)
            self._made[made] = self._templates.merged(op, self.params)
        return self._made[made]

    @functools.cached_property
    def with_bodies(self) -> Op:
        """A loop, a branch, or another operation with several results."""
        bodies = bodies_of(self.eqn)
        return Op(self.eqn.primitive.name, (), "", 0, bodies=bodies, runs=trip_count(self.eqn) if bodies else 1)

    @functools.cached_property
    def only_written(self) -> list[int]:
        """The results of a scan that its body writes into and does not read: what is stacked, and carries like that."""
        body, (num_consts, num_carry) = self.eqn.params["jaxpr"], compat.scan_arity(self.eqn)
        counts = collections.Counter(id(v) for v in (*(v for eqn in body.eqns for v in eqn.invars), *body.outvars))
        written = {e.outvars[0]: e.invars[0] for e in body.eqns if e.primitive.name == "dynamic_update_slice"}
        pairs = list(zip(body.invars[num_consts:], body.outvars[:num_carry]))
        once = [written.get(b) is a and counts[id(a)] == counts[id(b)] == 1 for a, b in pairs]
        return [*np.flatnonzero(once).tolist(), *range(num_carry, len(body.outvars))]

    def literal(self, position: int, shape: tuple[int, ...]) -> Template:
        """A number among what the equation reads, as an array of a shape."""
        made = "literal", position, shape
        if made not in self._made:
            self._made[made] = self._templates.literal(self.eqn.invars[position], shape)
        return self._made[made]

    def once[T](self, work_out: Callable[[Eqn], T]) -> T:
        """Something else that is asked of the equation."""
        if work_out not in self._asked:
            self._asked[work_out] = work_out(self.eqn)
        return self._asked[work_out]

    def layout(self, contracts: tuple[tuple[int, ...], ...]) -> OperandLayout:
        """How the operands of a product lie of which some dimensions are contracted."""
        if contracts not in self._layouts:
            self._layouts[contracts] = _layout(self.eqn, contracts)
        return self._layouts[contracts]


class _Known(dict[Eqn, Facts]):
    def __init__(self, templates: Templates) -> None:
        super().__init__()
        self._templates = templates

    def __missing__(self, eqn: Eqn) -> Facts:
        self[eqn] = found = Facts(eqn, len(self), self._templates)
        return found


class Templates:
    """Operations of one program, or of many programs of the same equations.

    Attributes:
      facts: what lowering asks of each equation.
    """

    def __init__(self) -> None:
        self.facts = _Known(self)
        self._numbers: dict[Hashable, int] = {}
        self._resized: dict[Hashable, Template] = {}
        self._like: dict[tuple[str, Var], Op] = {}
        self._spread: dict[Hashable, Template] = {}
        self._inverse: dict[Op, Template] = {}
        self._changed: dict[Hashable, Op] = {}

    def number(self, key: Hashable) -> int:
        """One number for all that is equal."""
        return self._numbers.setdefault(key, len(self._numbers))

    def merged(self, op: Op, key: Hashable) -> Template:
        """An operation that is merged with those of the same kind, operands and key."""
        return Template(op, self.number((op.kind, op.shape, op.dtype, key)), op.kind in COMMUTATIVE)

    def like(self, kind: str, var: Var) -> Op:
        """An operation with a result like a variable."""
        if (kind, var) not in self._like:
            self._like[kind, var] = Op(kind, shape_of(var), dtype_of(var), jaxprs.size_bytes(var))
        return self._like[kind, var]

    def resized(
        self, op: Op, kind: str, shape: tuple[int, ...], key: Hashable, *, turns_rows: bool = False
    ) -> Template:
        """An operation whose result has the dtype of another's."""
        made = op, kind, shape, key, turns_rows
        if made not in self._resized:
            size_bytes = op.size_bytes // max(op.elements, 1) * math.prod(shape)
            self._resized[made] = self.merged(Op(kind, shape, op.dtype, size_bytes, turns_rows=turns_rows), key)
        return self._resized[made]

    def changed(self, op: Op, **fields: Hashable) -> Op:
        """An operation with other fields: of another shape of as many entries, or read otherwise."""
        made = op, *fields.items()
        if made not in self._changed:
            self._changed[made] = dataclasses.replace(op, **fields)  # type: ignore[arg-type]
        return self._changed[made]

    def spread(self, like: Op, constant: Hashable) -> Template:
        """A constant over an array like the result of an operation."""
        made = like.shape, like.dtype, like.size_bytes, constant
        if made not in self._spread:
            op = Op("broadcast", like.shape, like.dtype, like.size_bytes, constant=constant)
            self._spread[made] = self.merged(op, constant)
        return self._spread[made]

    def inverse(self, op: Op) -> Template:
        """One divided by the result of an operation."""
        if op not in self._inverse:
            self._inverse[op] = self.merged(dataclasses.replace(op, kind="div", bodies=()), "")
        return self._inverse[op]

    def literal(self, atom: Atom, shape: tuple[int, ...]) -> Template:
        """A number as an array of a shape."""
        assert isinstance(atom, Literal)
        dtype = dtype_of(atom)
        op = Op("broadcast", shape, dtype, math.prod(shape) * np.dtype(dtype).itemsize)
        return self.spread(op, repr(np.asarray(atom.val).tolist()))


def shape_of(atom: Atom) -> tuple[int, ...]:
    return tuple(getattr(atom.aval, "shape", ()))


def dtype_of(atom: Atom) -> str:
    return _dtype_name(getattr(atom.aval, "dtype", ""))


@functools.cache
def _dtype_name(dtype: Any) -> str:
    return str(dtype)


def _params_key(eqn: Eqn) -> Hashable:
    """What tells an equation from another of the same primitive."""
    key = tuple((name, value) for name, value in sorted(eqn.params.items()) if name not in ("sharding", "out_sharding"))
    try:
        hash(key)
    except TypeError:
        return repr(key)
    return key


def _layout(eqn: Eqn, contracts: Sequence[Sequence[int]]) -> OperandLayout:
    given, batches = eqn.params["dimension_numbers"]
    operands = list(zip(map(shape_of, eqn.invars), contracts, batches))
    rank = len(shape_of(eqn.invars[0]))
    return OperandLayout(
        batches=tuple(map(tuple, batches)),
        batch_leads=tuple(_leads(batch, shape) for shape, _, batch in operands),
        is_canonical=tuple(
            _is_canonical(len(shape), contract, batch, last=side == 0)
            for side, (shape, contract, batch) in enumerate(operands)
        ),
        copy_order=tuple(
            _copy_order(shape, contract, batch, last=side == 0)
            for side, (shape, contract, batch) in enumerate(operands)
        ),
        contracts_rows=sorted(contracts[0]) == list(range(rank - len(contracts[0]), rank)),
        is_matrix=all(_free_size(shape_of(a), c, b) > 1 for a, c, b in zip(eqn.invars, given, batches)),
    )


def _leads(batch: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    large = [dim for dim, size in enumerate(shape) if size > 1]
    leading = [dim for dim in batch if shape[dim] > 1]
    return large[: len(leading)] == leading


def _is_canonical(rank: int, contract: Sequence[int], batch: Sequence[int], *, last: bool) -> bool:
    leads = list(batch) == list(range(len(batch)))
    is_matrix = len(contract) == 1 and rank == len(batch) + 2
    first = rank - len(contract) if last else len(batch)
    return leads and (is_matrix or list(contract) == list(range(first, first + len(contract))))


def _copy_order(shape: Sequence[int], contract: Sequence[int], batch: Sequence[int], *, last: bool) -> tuple[int, ...]:
    sides = contract, [dim for dim in range(len(shape)) if dim not in contract and dim not in batch]
    rows, columns = reversed(sides) if last else sides
    merges = any(sum(shape[dim] > 1 for dim in side) > 1 for side in sides)
    return (*batch, *rows, *columns) if merges else tuple(batch)


def _free_size(shape: tuple[int, ...], contract: Sequence[int], batch: Sequence[int]) -> int:
    return math.prod(size for dim, size in enumerate(shape) if dim not in contract and dim not in batch)
