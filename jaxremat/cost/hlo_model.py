"""A program as the small operations that a compiler fuses: close to XLA's HLO after simplification.

Reshapes vanish, literals become broadcasts, size-1 dimensions are broadcast explicitly, a division by a broadcast
value becomes a multiplication by the broadcast of its reciprocal, equal operations are merged (never across an
optimization barrier), and contractions get the transposed copies that their operands need.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Container, Hashable, Mapping, Sequence
from typing import Any

from jaxremat.backends.backend import Backend
from jaxremat.base import compat
from jaxremat.base.compat import Eqn, Jaxpr, Var
from jaxremat.cost.hlo_ops import Body, Facts, Op, Template, Templates, alone, shape_of
from jaxremat.cost.reductions import partition
from jaxremat.trace import jaxpr as jaxprs
from jaxremat.trace.listing import Listing, Slot, listing_of
from jaxremat.trace.primitives import ALIASING, CALLS, CHECKPOINTS, ELEMENTWISE, LOOPS, OWN_RULES, REDUCTIONS

FLOATS = frozenset({"float32", "bfloat16", "float64"})
_NEUTRAL = {
    "add": ("0", "0.0"), "mul": ("1", "1.0"), "and": ("True",), "or": ("False",), "max": ("-inf",), "min": ("inf",),
}  # fmt: skip
_COMBINES = {"reduce_sum": "add", "reduce_prod": "mul"}
_ONE = "1.0"  # as literals of any floating type are written
_LIBRARY_CONVOLUTIONS = frozenset({"float32", "float64"})


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
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


def lower(jaxpr: Jaxpr, backend: Backend, templates: Templates | None = None) -> Program:
    """Lowers a jaxpr.

    Args:
      jaxpr: any jaxpr; call-like equations are followed into their bodies.
      backend: whose compiler it is for.
      templates: what is known of its equations.
    """
    return lower_body(alone(jaxpr), backend, templates or Templates())


def lower_listing(listing: Listing, backend: Backend, templates: Templates) -> Program:
    """Lowers a program that was put together from equations, with what is known of them."""
    lowering = _Lowering(backend, templates)
    at = [lowering.make_input(var) for var in listing.inputs]
    lowering.run(listing, at, None)
    return lowering.program([at[slot] for slot in listing.outputs if isinstance(slot, int)])


def lower_body(body: Body, backend: Backend, templates: Templates) -> Program:
    """Lowers what a loop or a branch runs: of a stack, the slice that an iteration touches counts."""
    lowering, jaxpr = _Lowering(backend, templates), body.jaxpr
    listing, slot_of = listing_of(jaxpr)
    at = [lowering.make_input(var) for var in listing.inputs]
    for k, var in enumerate(jaxpr.invars[body.own_inputs :], len(jaxpr.constvars) + body.own_inputs):
        at[k] = lowering.slice_of(at[k], var)
    lowering.run(listing, at, None)
    op_of = {var: at[slot] for var, slot in slot_of.items() if isinstance(slot, int)}
    outputs = [op_of[v] for v in jaxprs.vars_of(jaxpr.outvars[: body.own_outputs])]
    stacked = [lowering.stacked(op_of[v], v) for v in jaxprs.vars_of(jaxpr.outvars[body.own_outputs :])]
    return lowering.program([*outputs, *stacked], op_of)


class _Lowering:
    """A program under way.

    Attributes:
      ops, reads, equations, takes_over: as in `Program`.
    """

    def __init__(self, backend: Backend, templates: Templates) -> None:
        self.ops: list[Op] = []
        self.reads: list[tuple[int, ...]] = []
        self.equations: list[int] = []
        self.takes_over: dict[int, int] = {}
        self._only_written: dict[int, int] = {}
        self._merged: dict[tuple[int, tuple[int, ...]], int] = {}
        self._expressions: dict[Hashable, int] = {}
        self._backend, self._templates = backend, templates
        self._equation = -1
        self._at: list[int] = []
        self._readers: list[int] = []

    def program(self, outputs: Sequence[int], op_of: Mapping[Var, int] | None = None) -> Program:
        if self._only_written:
            self._without_idle_stacks(outputs)
        return Program(self.ops, self.reads, self.equations, self.takes_over, tuple(outputs), op_of or {})

    def make_input(self, var: Var) -> int:
        return self._append(self._templates.like("input", var), (), -1)

    def slice_of(self, stack: int, var: Var) -> int:
        return self._append(self._templates.like("dynamic_slice", var), (stack,), -1)

    def stacked(self, read: int, var: Var) -> int:
        """What is written into a stack, in place."""
        return self._append(self._templates.like("dynamic_update_slice", var), (self.make_input(var), read), -1)

    def run(self, listing: Listing, at: list[int], equation: int | None) -> None:
        """Lowers a listing; `at` holds the operations of its inputs, then those of all its variables.

        Args:
          listing: a program, or what one of its equations calls.
          at: one operation per variable.
          equation: the equation that calls it, None for the program itself.
        """
        outside, self._at, self._readers = (self._at, self._readers), at, listing.readers()
        for index, (eqn, like, reads) in enumerate(listing.lines):
            self._equation = index if equation is None else equation
            if eqn is None:
                at += self._fenced(tuple(self._found(read, at) for read in reads), like)
            else:
                facts = self._templates.facts(eqn)
                rule = _RULES.get(facts.name)
                at += rule(self, facts, reads) if rule else self._any(facts, reads)
        self._at, self._readers = outside

    def _operands(self, facts: Facts, reads: Sequence[Slot]) -> tuple[int, ...]:
        """What an equation reads; numbers as arrays of their own shape."""
        return tuple(self._operand(facts, position, read) for position, read in enumerate(reads))

    def _operand(self, facts: Facts, position: int, read: Slot, shape: tuple[int, ...] | None = None) -> int:
        """One of the operands; a number as an array of a shape, or of its own."""
        if isinstance(read, int):
            return self._at[read]
        return self._constant(facts.literal(position, shape_of(read) if shape is None else shape))

    def _call(self, facts: Facts, reads: Sequence[Slot]) -> list[int]:
        assert facts.body is not None
        inner = [self.make_input(var) for var in facts.body.constvars]
        given, params = self._operands(facts, reads), facts.eqn.params
        fenced = params.get("prevent_cse", False) and params.get("differentiated", False)
        inner += self._fenced(given, facts.body.invars) if fenced is True else given
        self.run(facts.listing, inner, self._equation)
        return [self._found(slot, inner) for slot in facts.listing.outputs]

    def _found(self, slot: Slot, at: Sequence[int]) -> int:
        return at[slot] if isinstance(slot, int) else self._constant(self._templates.literal(slot, shape_of(slot)))

    def _barrier(self, facts: Facts, reads: Sequence[Slot]) -> list[int]:
        return self._fenced(self._operands(facts, reads), facts.eqn.outvars)

    def _fenced(self, reads: tuple[int, ...], like: Sequence[Var]) -> list[int]:
        """The same values behind an optimization barrier."""
        fence = self._append(_FENCE, reads)
        return [self._append(self._templates.like("fenced", var), (fence, read)) for var, read in zip(like, reads)]

    def _split(self, facts: Facts, reads: Sequence[Slot]) -> list[int]:
        slices = [self._templates.like("slice", var) for var in facts.eqn.outvars]
        made = [self._templates.merged(part, ("split", k, facts.params)) for k, part in enumerate(slices)]
        operands = self._operands(facts, reads)
        return [self._merge(part, operands) for part in made]

    def _with_bodies(self, facts: Facts, reads: Sequence[Slot]) -> list[int]:
        """What has several results, or runs bodies."""
        return self._parts(facts, self._operands(facts, reads))

    def _parts(self, facts: Facts, operands: tuple[int, ...]) -> list[int]:
        base = self._append(facts.with_bodies, operands)
        return [self._append(self._templates.like("part", var), (base,)) for var in facts.eqn.outvars]

    def _scanned(self, facts: Facts, reads: Sequence[Slot]) -> list[int]:
        """A loop. What it stacks begins as zeros, which are written."""
        operands, (num_consts, num_carry) = self._operands(facts, reads), compat.scan_arity(facts.eqn)
        consts, carries, slices = (
            operands[:num_consts],
            operands[num_consts:][:num_carry],
            operands[num_consts + num_carry :],
        )
        carries = tuple(map(self._copied, carries)) if self._backend.breadth_first else carries
        stacks = [self._append(self._templates.like("broadcast", v), ()) for v in facts.eqn.outvars[num_carry:]]
        parts = self._parts(facts, (*consts, *carries, *slices, *stacks))
        begins = [*carries, *stacks]
        self._only_written |= {parts[k]: begins[k] for k in facts.only_written}
        self.takes_over |= self._taken_over(parts, reads[num_consts:], carries) | dict(zip(parts[num_carry:], stacks))
        return parts

    def _copied(self, carry: int) -> int:
        """What a carry begins as: a constant is copied at the start of the program, for each loop by itself."""
        op = self.ops[carry]
        return carry if op.constant is None else self._append(op, (), -1)

    def _taken_over(self, parts: Sequence[int], slots: Sequence[Slot], carries: Sequence[int]) -> dict[int, int]:
        """The carries that no one else reads: a scan's results live in their buffers. Carries that start as the same
        constant share its buffer no longer; the first takes it."""
        taken: dict[int, int] = {}
        for part, slot, read in zip(parts, slots, carries):
            alone = isinstance(slot, int) and self._readers[slot] == 1
            op = self.ops[read]
            if (op.constant is not None or alone) and read not in taken.values() and op.kind != "input":
                taken[part] = read
        return taken

    def _without_idle_stacks(self, outputs: Sequence[int]) -> None:
        """Takes from loops what they only write into, where nobody reads it."""
        read = {read for reads in self.reads for read in reads}.union(outputs)
        for part, stack in self._only_written.items():
            if part not in read:
                (loop,) = self.reads[part]
                self.reads[loop] = tuple(read for read in self.reads[loop] if read != stack)

    def _any(self, facts: Facts, reads: Sequence[Slot]) -> list[int]:
        if len(facts.eqn.outvars) != 1:
            return self._with_bodies(facts, reads)
        return [self._usual(facts, self._operands(facts, reads))]

    def _usual(self, facts: Facts, reads: tuple[int, ...]) -> int:
        if facts.eqn.effects:
            return self._append(facts.op(facts.name), reads)
        return self._merge(facts.usual, reads)

    def _aliased(self, facts: Facts, reads: Sequence[Slot]) -> list[int]:
        read = self._operand(facts, 0, reads[0], facts.shape)
        constant = self.ops[read].constant
        return [read if constant is None else self._spread(constant, facts)]

    def _broadcast(self, facts: Facts, reads: Sequence[Slot]) -> list[int]:
        read = self._operand(facts, 0, reads[0], facts.shape)
        op = self.ops[read]
        if op.constant is not None:
            return [self._spread(op.constant, facts)]
        return [read if op.elements == facts.elements else self._merge(facts.usual, (read,))]

    def _reduced(self, facts: Facts, reads: Sequence[Slot]) -> list[int]:
        name, operands = facts.name, self._operands(facts, reads)
        if self.ops[operands[0]].elements == facts.elements > 0 and name not in ("argmax", "argmin"):
            return [operands[0]]
        library = name in ("reduce_max", "reduce_min") or (name == "reduce_sum" and facts.dtype != "bfloat16")
        combines = _COMBINES.get(name, name.removeprefix("reduce_"))
        parts = partition(shape_of(facts.eqn.invars[0]), facts.eqn.params["axes"])
        key = name, facts.params
        template = facts.template("reduce", key, in_library=library, combines=combines, partition=parts)
        if name == "reduce_sum" and self.ops[operands[0]].kind == "neg":
            return [self._merge(facts.template("neg"), (self._merge(template, self.reads[operands[0]]),))]
        return [self._merge(template, operands)]

    def _concatenated(self, facts: Facts, reads: Sequence[Slot]) -> list[int]:
        rows = facts.eqn.params["dimension"] == len(facts.shape) - 1 > 0
        template = facts.template("concatenate", facts.params, splits_rows=rows)
        return [self._merge(template, self._operands(facts, reads))]

    def _transposed(self, facts: Facts, reads: Sequence[Slot]) -> list[int]:
        (read,) = self._operands(facts, reads)
        dims = [dim for dim in facts.eqn.params["permutation"] if shape_of(facts.eqn.invars[0])[dim] > 1]
        stays = dims == sorted(dims) or self._swaps_product(reads[0], read)
        return [read if stays else self._usual(facts, (read,))]

    def _swaps_product(self, slot: Slot, read: int) -> bool:
        """Whether a transpose means a product of matrices that no one else reads: its operands change places."""
        op = self.ops[read]
        return op.kind == "dot" and len(op.shape) == 2 and isinstance(slot, int) and self._readers[slot] == 1

    def _transferred(self, facts: Facts, reads: Sequence[Slot]) -> list[int]:
        """Copies over the link; from the host they are element-wise work where kernels read the host's memory."""
        eqn = facts.eqn
        if not self._backend.reads_host or not any(map(jaxprs.is_on_host, eqn.invars)):
            return self._any(facts, reads)
        operands = self._operands(facts, reads)
        return [self._append(self._templates.like("copy", v), (read,)) for v, read in zip(eqn.outvars, operands)]

    def _random_bits(self, facts: Facts, reads: Sequence[Slot]) -> list[int]:
        operands = self._operands(facts, reads)
        return [self._threefry(facts, operands[0]) if self._backend.rolls_threefry else self._usual(facts, operands)]

    def _threefry(self, facts: Facts, key: int) -> int:
        """Random bits as a loop over rounds that makes both halves of every number of the halves before, which begin as
        counts; they are joined where they are read."""
        half = Op("random_bits", facts.shape, "uint32", 4 * facts.elements)
        reads: tuple[int, ...] = (key,)
        for name in ("count", "half"):
            both = [self._templates.merged(half, (name, k, facts.params)) for k in range(2)]
            reads = tuple(self._merge(each, reads) for each in both)
        return self._merge(facts.template("xor"), reads)

    def _pooled_back(self, facts: Facts, reads: Sequence[Slot]) -> list[int]:
        operands = self._operands(facts, reads)
        if self._backend.expands_searches:
            operands = self._searched_windows(facts, operands)
        return [self._usual(facts, operands)]

    def _searched_windows(self, facts: Facts, reads: tuple[int, ...]) -> tuple[int, ...]:
        """XLA:CPU finds the maxima with one array of indices per axis, then scatters the source there into zeros."""
        (source, operand), axes = reads, range(len(facts.shape))
        counted = Op("iota", facts.shape, "int32", 4 * facts.elements)
        indices = [self._constant(self._templates.merged(counted, ("axis", axis))) for axis in axes]
        shape = (*shape_of(facts.eqn.invars[0]), len(axes))
        found = Op("reduce_window", shape, "int32", 4 * math.prod(shape))
        searched = self._merge(self._templates.merged(found, facts.params), (operand, *indices))
        return source, searched, self._spread("0.0", facts)

    def _elementwise(self, facts: Facts, reads: Sequence[Slot]) -> list[int]:
        operands = self._operands_of_size(facts, reads)
        constants = [self.ops[read].constant for read in operands]
        if operands and None not in constants:
            return [self._spread(self._expression((facts.kind, tuple(constants), facts.params)), facts)]
        for read, constant in zip(operands, reversed(constants)) if len(operands) == 2 else ():
            if constant in _NEUTRAL.get(facts.kind, ()):
                return [read]
        special = _SPECIAL.get(facts.name)
        made = special(self, facts, operands) if special else None
        return [self._merge(facts.usual, operands) if made is None else made]

    def _operands_of_size(self, facts: Facts, reads: Sequence[Slot]) -> tuple[int, ...]:
        """What an element-wise equation reads, all with as many elements as its result."""
        found: list[int] = []
        for position, read in enumerate(reads):
            index = self._at[read] if isinstance(read, int) else self._operand(facts, position, read, facts.shape)
            found.append(index if self.ops[index].elements == facts.elements else self._widened(index, facts))
        return tuple(found)

    def _divided(self, facts: Facts, reads: tuple[int, ...]) -> int | None:
        divisor = self.ops[reads[1]]
        if divisor.kind != "broadcast" or (divisor.constant is None and not self._backend.spreads_reciprocals):
            return None
        return self._merge(facts.template("mul"), (reads[0], self._reciprocal(reads[1], facts)))

    def _converted(self, facts: Facts, reads: tuple[int, ...]) -> int | None:
        """What is turned and then narrowed is narrowed first (ReshapeMover)."""
        turned, width = self.ops[reads[0]], facts.usual.op.size_bytes
        if turned.kind != "transpose" or turned.size_bytes <= width:
            return None
        (source,) = self.reads[reads[0]]
        narrow = Op("convert_element_type", self.ops[source].shape, facts.dtype, width)
        narrowed = self._merge(self._templates.merged(narrow, facts.params), (source,))
        again = dataclasses.replace(turned, dtype=facts.dtype, size_bytes=width)
        return self._merge(self._templates.merged(again, ("narrowed", reads[0])), (narrowed,))

    def _selected(self, facts: Facts, reads: tuple[int, ...]) -> int | None:
        """What selects between false and true is the condition."""
        either = tuple(self.ops[read].constant for read in reads[1:])
        return reads[0] if either == ("False", "True") else None

    def _squared(self, facts: Facts, reads: tuple[int, ...]) -> int:
        return self._merge(facts.template("mul"), (reads[0], reads[0]))

    def _to_power(self, facts: Facts, reads: tuple[int, ...]) -> int | None:
        power = facts.eqn.params["y"]
        if power not in (2, 3):
            return None
        square = self._squared(facts, reads)
        return square if power == 2 else self._merge(facts.template("mul"), (square, reads[0]))

    def _one_minus_square(self, facts: Facts, reads: tuple[int, ...]) -> int:
        one = self._spread(_ONE, facts)
        factors = tuple(self._merge(facts.template(kind), (one, reads[0])) for kind in ("add", "sub"))
        return self._merge(facts.template("mul"), factors)

    def _summed(self, facts: Facts, reads: tuple[int, ...]) -> int | None:
        """A sum with what is scattered into a constant is scattered into the other summand."""
        for scattered, other in (reads, reads[::-1]):
            into = self.reads[scattered]
            if self.ops[scattered].kind == "scatter-add" and self.ops[into[0]].constant is not None:
                return self._append(facts.op("scatter-add"), (other, *into[1:]))
        return None

    def _reciprocal(self, divisor: int, facts: Facts) -> int:
        """The broadcast of 1/y for a broadcast of y."""
        op = self.ops[divisor]
        if op.constant is not None:
            return self._spread(self._expression(("1/", op.constant)), facts)
        (divided,) = self.reads[divisor]
        source = self.ops[divided]
        one = self._constant(self._templates.spread(Op("broadcast", source.shape, op.dtype, source.size_bytes), _ONE))
        inverse = self._templates.merged(dataclasses.replace(source, kind="div", bodies=()), "")
        inverted = self._merge(inverse, (one, divided))
        if divided in self.takes_over:
            self.takes_over.setdefault(inverted, self.takes_over[divided])
        spread = self._templates.merged(op, ("1/", divisor))
        return self._merge(spread, (inverted,), self.equations[divisor])

    def _widened(self, read: int, facts: Facts) -> int:
        op = self.ops[read]
        if op.elements == facts.elements:
            return read
        if op.constant is not None:
            like = self._templates.resized(op, "broadcast", facts.shape, None).op
            return self._constant(self._templates.spread(like, op.constant))
        spread = self._templates.resized(op, "broadcast", facts.shape, ("to", facts.shape))
        return self._merge(spread, (read,))

    def _dot(self, facts: Facts, slots: Sequence[Slot]) -> list[int]:
        reads = self._operands(facts, slots)
        contracts, batches = facts.eqn.params["dimension_numbers"]
        if not batches[0]:
            reads, contracts = self._turned(reads, contracts)
        layout = facts.layout(tuple(map(tuple, contracts)))
        operands = [
            read if fits else self._laid_out(facts, side, read, tuple(contract), batch)
            for side, (read, fits, contract, batch) in enumerate(zip(reads, layout.fits, contracts, layout.batches))
        ]
        plain = layout.contracts_rows or operands[0] != reads[0]
        if self._backend.dot_copies and not plain and not batches[0] and len(shape_of(facts.eqn.invars[0])) > 2:
            operands[0] = self._copy(facts, 0, reads[0], "contracted first")
        elif not batches[0]:
            operands = [self._flattened(facts, side, read) for side, read in enumerate(operands)]
        return [self._product("dot", tuple(operands), facts, FLOATS if plain and layout.is_matrix else frozenset())]

    def _turned(self, reads: tuple[int, ...], contracts: Any) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
        """Operands, and what is contracted of them, with transposes of matrices folded into the product."""
        turned = [(read, tuple(contract)) for read, contract in zip(reads, contracts)]
        for side, (read, contract) in enumerate(turned):
            op = self.ops[read]
            if op.kind == "transpose" and len(op.shape) == 2 and len(contract) == 1:
                turned[side] = self.reads[read][0], (1 - contract[0],)
        return tuple(read for read, _ in turned), [contract for _, contract in turned]

    def _laid_out(self, facts: Facts, side: int, read: int, contract: tuple[int, ...], batch: tuple[int, ...]) -> int:
        """An operand that does not lie as its product wants it, copied where the compiler does so."""
        if self._backend.dot_copies:
            return self._copy(facts, side, read, (contract, batch))
        if not self._backend.batch_copies or _leads(batch, shape_of(facts.eqn.invars[side])):
            return read
        return self._copy(facts, side, read, batch)

    def _copy(self, facts: Facts, side: int, read: int, key: Hashable) -> int:
        """An operand in another layout."""
        shape = shape_of(facts.eqn.invars[side])
        return self._merge(self._templates.resized(self.ops[read], "transpose", shape, key), (read,))

    def _flattened(self, facts: Facts, side: int, read: int) -> int:
        op = self.ops[read]
        if len(shape_of(facts.eqn.invars[side])) <= 2 or op.kind == "transpose":
            return read
        return self._merge(self._templates.resized(op, "bitcast", op.shape, "matrix"), (read,))

    def _conv(self, facts: Facts, slots: Sequence[Slot]) -> list[int]:
        """A convolution; where operands are copied, of channels last, its result turned as the program has it."""
        reads, eqn, dims = self._operands(facts, slots), facts.eqn, facts.eqn.params["dimension_numbers"]
        library = _LIBRARY_CONVOLUTIONS if _conv_in_library(eqn) else frozenset()
        if not self._backend.dot_copies:
            if self._backend.filter_copies and tuple(dims.lhs_spec) == _channels_last(dims):
                reads = reads[0], self._filter(facts, reads[1])
            return [self._product("conv", reads, facts, library)]
        specs = ((dims.lhs_spec, _channels_last(dims)), (dims.rhs_spec, _kernel_order(dims)))
        operands = tuple(
            read if tuple(spec) == wanted else self._copy(facts, side, read, tuple(spec))
            for side, (read, (spec, wanted)) in enumerate(zip(reads, specs))
        )
        made = self._product("conv", operands, facts, library)
        if tuple(dims.out_spec) == _channels_last(dims):
            return [made]
        return [self._merge(self._templates.resized(self.ops[made], "transpose", facts.shape, "result"), (made,))]

    def _filter(self, facts: Facts, read: int) -> int:
        """A filter as the library reads it; one for a convolution and for its gradient, which reads it in reverse."""
        outputs, inputs, *spatial = facts.eqn.params["dimension_numbers"].rhs_spec
        if self.ops[read].kind == "rev":
            outputs, inputs, (read,) = inputs, outputs, self.reads[read]
        order = outputs, *spatial, inputs
        return read if order == tuple(range(len(order))) else self._copy(facts, 1, read, order)

    def _product(self, kind: str, reads: tuple[int, ...], facts: Facts, library: Container[str]) -> int:
        """A contraction, in its own dtype or in float32; the library takes it in the given dtypes."""
        dtype, widened = facts.dtype, self._backend.widened_products
        if dtype in library or widened.isdisjoint({dtype, *(self.ops[read].dtype for read in reads)}):
            return self._merge(facts.template(kind, facts.params, in_library=dtype in library), reads)
        wide = tuple(self._float32(read) if self.ops[read].dtype in widened else read for read in reads)
        made = self._merge(facts.wide_product(kind, in_library="float32" in library), wide)
        return made if dtype == "float32" else self._merge(facts.template("convert_element_type", dtype), (made,))

    def _float32(self, read: int) -> int:
        op = self.ops[read]
        wide = Op("convert_element_type", op.shape, "float32", 4 * op.elements)
        return self._merge(self._templates.merged(wide, "float32"), (read,))

    def _expression(self, parts: Hashable) -> Hashable:
        """One identity per distinct expression of constants, which does not grow with the expression."""
        return "expression", self._expressions.setdefault(parts, len(self._expressions))

    def _spread(self, constant: Hashable, facts: Facts) -> int:
        """A constant over the equation's result."""
        return self._constant(self._templates.spread(facts.result, constant))

    def _constant(self, template: Template) -> int:
        return self._merge(template, (), -1)

    def _merge(self, template: Template, reads: tuple[int, ...], equation: int | None = None) -> int:
        """Adds an operation unless there is an equal one, whatever the order of operands that may change places."""
        key = template.identity, tuple(sorted(reads)) if template.commutes else reads
        known = self._merged.get(key)
        if known is None:
            known = self._merged[key] = self._append(template.op, reads, equation)
        return known

    def _append(self, op: Op, reads: tuple[int, ...], equation: int | None = None) -> int:
        self.ops.append(op)
        self.reads.append(reads)
        self.equations.append(self._equation if equation is None else equation)
        return len(self.ops) - 1


_FENCE = Op("barrier", (), "", 0)
_RULES: dict[str, Callable[[_Lowering, Facts, Sequence[Slot]], list[int]]] = {
    **dict.fromkeys(LOOPS, _Lowering._with_bodies),
    **dict.fromkeys(ELEMENTWISE, _Lowering._elementwise),
    **dict.fromkeys(ALIASING, _Lowering._aliased),
    **dict.fromkeys(REDUCTIONS, _Lowering._reduced),
    **dict.fromkeys((*CALLS, *CHECKPOINTS, *OWN_RULES), _Lowering._call),
    "broadcast_in_dim": _Lowering._broadcast,
    "concatenate": _Lowering._concatenated,
    "conv_general_dilated": _Lowering._conv,
    "dot_general": _Lowering._dot,
    "optimization_barrier": _Lowering._barrier,
    "device_put": _Lowering._transferred,
    "random_bits": _Lowering._random_bits,
    "scan": _Lowering._scanned,
    "select_and_scatter_add": _Lowering._pooled_back,
    "split": _Lowering._split,
    "transpose": _Lowering._transposed,
}
_SPECIAL: dict[str, Callable[[_Lowering, Facts, tuple[int, ...]], int | None]] = {
    "add": _Lowering._summed,
    "add_any": _Lowering._summed,
    "convert_element_type": _Lowering._converted,
    "div": _Lowering._divided,
    "integer_pow": _Lowering._to_power,
    "select_n": _Lowering._selected,
    "one_minus_square": _Lowering._one_minus_square,
    "square": _Lowering._squared,
}


def _leads(batch: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether batch dimensions come before all others, but for those of size 1."""
    large = [dim for dim, size in enumerate(shape) if size > 1]
    leading = [dim for dim in batch if shape[dim] > 1]
    return large[: len(leading)] == leading


def _channels_last(dims: Any) -> tuple[int, ...]:
    spatial = len(dims.lhs_spec) - 2
    return (0, spatial + 1, *range(1, spatial + 1))


def _kernel_order(dims: Any) -> tuple[int, ...]:
    spatial = len(dims.rhs_spec) - 2
    return (spatial + 1, spatial, *range(spatial))


def _conv_in_library(eqn: Eqn) -> bool:
    """Two-dimensional convolutions without dilation of the input, with enough channels, that do not grow the image."""
    dims, params = eqn.params["dimension_numbers"], eqn.params
    out, image = ([shape_of(v)[i] for i in spec] for v, spec in zip((eqn.outvars[0], eqn.invars[0]), dims[2::-2]))
    return (
        len(out) == 4
        and params["batch_group_count"] == 1
        and set(params["lhs_dilation"]) <= {1}
        and max(out[1], image[1]) > 16
        and all(after <= before for after, before in zip(out[2:], image[2:]))
    )
