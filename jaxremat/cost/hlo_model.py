"""A jaxpr as the small operations that a compiler fuses: close to XLA's HLO after simplification.

Reshapes vanish, literals become broadcasts, size-1 dimensions are broadcast explicitly, a division by a broadcast
value becomes a multiplication by the broadcast of its reciprocal, equal operations are merged (never across an
optimization barrier), and contractions get the transposed copies that their operands need.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Container, Hashable, Sequence
from typing import Any

import numpy as np

from jaxremat.backends.backend import Backend
from jaxremat.base import compat
from jaxremat.base.compat import Atom, Eqn, Jaxpr, Literal, Var
from jaxremat.cost.flops import equation_flops, trip_count
from jaxremat.trace import jaxpr as jaxprs
from jaxremat.trace.primitives import ALIASING, COMMUTATIVE, ELEMENTWISE, LOOPS, MOVING, REDUCTIONS

CONTRACTIONS = frozenset({"dot", "conv"})
FLOATS = frozenset({"float32", "bfloat16", "float64"})
_ONE = "1.0"  # as literals of any floating type are written
_SYNONYMS = {"add_any": "add"}
_LIBRARY_CONVOLUTIONS = frozenset({"float32", "float64"})


@dataclasses.dataclass(frozen=True, eq=False)
class Body:
    """What a loop or a branch runs.

    Attributes:
      jaxpr: one iteration.
      own_inputs: how many of its inputs are there as they are; the others are slices of stacks.
      own_outputs: how many of its outputs are handed on as they are; the others are written into stacks.
    """

    jaxpr: Jaxpr
    own_inputs: int
    own_outputs: int


def bodies_of(eqn: Eqn) -> tuple[Body, ...]:
    """The bodies of a loop or of a conditional; none of anything else."""
    name = eqn.primitive.name
    if name not in LOOPS:
        return ()
    if name == "scan":
        num_consts, num_carry = compat.scan_arity(eqn)
        return tuple(Body(jaxpr, num_consts + num_carry, num_carry) for jaxpr in jaxprs.subjaxprs(eqn))
    return tuple(map(alone, jaxprs.subjaxprs(eqn)))


def alone(jaxpr: Jaxpr) -> Body:
    """A program that neither slices nor stacks."""
    return Body(jaxpr, len(jaxpr.invars), len(jaxpr.outvars))


@dataclasses.dataclass(frozen=True, eq=False)
class Op:
    """One operation with one result.

    Attributes:
      kind: a primitive's name, or one of `input`, `broadcast`, `bitcast`, `reduce`, `dot`, `conv`, `part`, `barrier`.
      reads: operations whose results it reads.
      shape, dtype, size_bytes: of its result.
      equation: index of the top-level equation that it comes from; -1 for inputs and constants.
      in_library: a contraction or reduction that XLA:CPU hands to its library.
      constant: identity of a broadcast literal, or None.
      bodies: what it runs (loops, branches).
      flops, runs: of a contraction, the FLOPs; of a loop, how often its body runs.
      takes_over: operation whose buffer the result lives in (a loop's carry), or -1.
      splits_rows: a concatenation along the last dimension.
    """

    kind: str
    reads: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: str
    size_bytes: int
    equation: int = -1
    in_library: bool = False
    constant: Hashable = None
    bodies: tuple[Body, ...] = ()
    takes_over: int = -1
    splits_rows: bool = False
    flops: float = 0.0
    runs: int = 1

    @functools.cached_property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """Operations in executable order.

    Attributes:
      ops: the operations; inputs first.
      op_of: the operation that computes each top-level variable.
      outputs: operations whose results the program returns.
    """

    ops: tuple[Op, ...]
    op_of: dict[Var, int]
    outputs: tuple[int, ...]


def lower(jaxpr: Jaxpr, backend: Backend) -> Program:
    """Lowers a jaxpr.

    Args:
      jaxpr: any jaxpr; call-like equations are followed into their bodies.
      backend: whose compiler it is for.
    """
    return lower_body(alone(jaxpr), backend)


def lower_body(body: Body, backend: Backend) -> Program:
    """Lowers what a loop or a branch runs: of a stack, the slice that an iteration touches counts."""
    lowering, jaxpr = _Lowering(backend), body.jaxpr
    env = {var: lowering.make_input(var) for var in (*jaxpr.constvars, *jaxpr.invars)}
    for var in jaxpr.invars[body.own_inputs :]:
        env[var] = lowering.slice_of(env[var], var)
    lowering.run(jaxpr, env, None)
    outputs = [env[v] for v in jaxprs.vars_of(jaxpr.outvars[: body.own_outputs])]
    stacked = [lowering.stacked(env[v], v) for v in jaxprs.vars_of(jaxpr.outvars[body.own_outputs :])]
    return Program(tuple(lowering.ops), env, (*outputs, *stacked))


class _Lowering:
    def __init__(self, backend: Backend) -> None:
        self.ops: list[Op] = []
        self._known: dict[Hashable, int] = {}
        self._expressions: dict[Hashable, int] = {}
        self._backend = backend
        self._equation = -1
        self._readers: dict[Atom, int] = {}

    def make_input(self, var: Var) -> int:
        return self._append(_op("input", (), var))

    def slice_of(self, stack: int, var: Var) -> int:
        return self._append(_op("dynamic_slice", (stack,), var))

    def stacked(self, read: int, var: Var) -> int:
        """What is written into a stack, in place."""
        return self._append(_op("dynamic_update_slice", (self.make_input(var), read), var))

    def run(self, jaxpr: Jaxpr, env: dict[Var, int], equation: int | None) -> None:
        for atom in (*(v for eqn in jaxpr.eqns for v in jaxprs.vars_of(eqn.invars)), *jaxprs.vars_of(jaxpr.outvars)):
            self._readers[atom] = self._readers.get(atom, 0) + 1
        for index, eqn in enumerate(jaxpr.eqns):
            self._equation, self._eqn = (index if equation is None else equation), eqn
            name = eqn.primitive.name
            if (body := jaxprs.computed_body(eqn)) is not None:
                self._call(eqn, body, env)
            elif name == "optimization_barrier":
                self._barrier(eqn, env)
            elif len(eqn.outvars) == 1 and name not in LOOPS:
                env[eqn.outvars[0]] = self._single(eqn, env)
            else:
                self._many(eqn, env)

    def _call(self, eqn: Eqn, body: Jaxpr, env: dict[Var, int]) -> None:
        inner = {var: self.make_input(var) for var in body.constvars}
        reads = tuple(self._read(a, env, _shape(a)) for a in eqn.invars)
        fenced = eqn.params.get("prevent_cse", False) and eqn.params.get("differentiated", False)
        inner.update(zip(body.invars, self._fenced(reads, body.invars) if fenced is True else reads))
        self.run(body, inner, self._equation)
        env.update(zip(eqn.outvars, [self._read(a, inner, _shape(a)) for a in body.outvars]))

    def _barrier(self, eqn: Eqn, env: dict[Var, int]) -> None:
        reads = tuple(self._read(a, env, _shape(a)) for a in eqn.invars)
        env.update(zip(eqn.outvars, self._fenced(reads, eqn.outvars)))

    def _fenced(self, reads: tuple[int, ...], like: Sequence[Var]) -> list[int]:
        """The same values behind an optimization barrier."""
        fence = self._append(Op("barrier", reads, (), "", 0, self._equation))
        return [self._append(self._op("fenced", (fence, read), var)) for var, read in zip(like, reads)]

    def _many(self, eqn: Eqn, env: dict[Var, int]) -> None:
        reads = tuple(self._read(a, env, _shape(a)) for a in eqn.invars)
        if eqn.primitive.name == "split":
            for k, var in enumerate(eqn.outvars):
                env[var] = self._add("slice", reads, var, ("split", k, _params_key(eqn)))
            return
        begins = self._stacks(eqn) if not self._backend.breadth_first else {}
        reads, bodies = (*reads, *begins.values()), bodies_of(eqn)
        runs = trip_count(eqn) if bodies else 1
        base = self._append(Op(eqn.primitive.name, reads, (), "", 0, self._equation, bodies=bodies, runs=runs))
        taken = self._taken_over(eqn, reads) | begins
        for k, var in enumerate(eqn.outvars):
            env[var] = self._append(self._op("part", (base,), var, takes_over=taken.get(k, -1)))

    def _stacks(self, eqn: Eqn) -> dict[int, int]:
        """What a scan stacks, by result: it begins as zeros, which are written."""
        if eqn.primitive.name != "scan":
            return {}
        _, num_carry = compat.scan_arity(eqn)
        zeros = [self._op("broadcast", (), var) for var in eqn.outvars[num_carry:]]
        return {k: self._append(op) for k, op in enumerate(zeros, num_carry)}

    def _taken_over(self, eqn: Eqn, reads: tuple[int, ...]) -> dict[int, int]:
        """For a scan, the carries that no one else reads: its results live in their buffers. Carries that start as the
        same constant share its buffer no longer; the first takes it."""
        if eqn.primitive.name != "scan":
            return {}
        num_consts, num_carry = compat.scan_arity(eqn)
        taken: dict[int, int] = {}
        for k, (atom, read) in enumerate(zip(eqn.invars[num_consts:], reads[num_consts:][:num_carry])):
            given_up = self.ops[read].constant is not None or self._readers.get(atom) == 1
            if given_up and read not in taken.values() and self.ops[read].kind != "input":
                taken[k] = read
        return taken

    def _single(self, eqn: Eqn, env: dict[Var, int]) -> int:
        name, out = compat.primitive_name(eqn), eqn.outvars[0]
        if name in ALIASING:
            return self._reshaped(self._read(eqn.invars[0], env, _shape(out)), out)
        if name == "broadcast_in_dim":
            return self._broadcast(self._read(eqn.invars[0], env, _shape(out)), out, _params_key(eqn))
        if name in ELEMENTWISE:
            return self._elementwise(eqn, env)
        reads = tuple(self._read(a, env, _shape(a)) for a in eqn.invars)
        if name == "dot_general":
            return self._dot(eqn, reads)
        if name == "conv_general_dilated":
            return self._conv(eqn, reads)
        if name in REDUCTIONS:
            library = name in ("reduce_max", "reduce_min") or (name == "reduce_sum" and _dtype(out) != "bfloat16")
            return self._add("reduce", reads, out, (name, _params_key(eqn)), in_library=library)
        if name == "transpose" and self._swaps_product(eqn, reads[0]):
            return reads[0]
        if name == "random_bits" and self._backend.rolls_threefry:
            return self._threefry(eqn, reads[0])
        if name == "select_and_scatter_add" and self._backend.expands_searches:
            reads = self._searched_windows(eqn, reads)
        if name == "concatenate":
            rows = eqn.params["dimension"] == len(_shape(out)) - 1 > 0
            return self._keyed(self._op(name, reads, out, splits_rows=rows), _params_key(eqn))
        if name in MOVING:
            return self._add(name, reads, out, _params_key(eqn))
        return self._add(name, reads, out, None if eqn.effects else _params_key(eqn))

    def _searched_windows(self, eqn: Eqn, reads: tuple[int, ...]) -> tuple[int, ...]:
        """XLA:CPU finds the maxima with one array of indices per axis, then scatters the source there into zeros."""
        (source, operand), out = reads, eqn.outvars[0]
        axes = range(len(_shape(out)))
        size = 4 * math.prod(_shape(out))
        indices = [self._keyed(Op("iota", (), _shape(out), "int32", size, -1), ("axis", axis)) for axis in axes]
        shape = (*_shape(eqn.invars[0]), len(axes))
        found = Op("reduce_window", (operand, *indices), shape, "int32", 4 * math.prod(shape), self._equation)
        return source, self._keyed(found, _params_key(eqn)), self._literal("0.0", out)

    def _swaps_product(self, eqn: Eqn, read: int) -> bool:
        """Whether a transpose means a product of matrices that no one else reads: its operands change places."""
        return self.ops[read].kind == "dot" and len(self.ops[read].shape) == 2 and self._readers[eqn.invars[0]] == 1

    def _threefry(self, eqn: Eqn, key: int) -> int:
        """Random bits as a loop over rounds that makes both halves of every number of the halves before, which begin as
        counts; they are joined where they are read."""
        shape = _shape(eqn.outvars[0])
        half = Op("random_bits", (key,), shape, "uint32", 4 * math.prod(shape), self._equation)
        both = lambda half, name: tuple(self._keyed(half, (name, k, _params_key(eqn))) for k in range(2))
        counts = both(half, "count")
        return self._add("xor", both(dataclasses.replace(half, reads=counts), "half"), eqn.outvars[0], "")

    def _elementwise(self, eqn: Eqn, env: dict[Var, int]) -> int:
        name, out = _SYNONYMS.get(eqn.primitive.name, eqn.primitive.name), eqn.outvars[0]
        reads = tuple(self._widened(self._read(a, env, _shape(out)), out) for a in eqn.invars)
        if reads and all(self.ops[r].constant is not None for r in reads):
            parts = (name, tuple(self.ops[r].constant for r in reads), _params_key(eqn))
            return self._literal(self._expression(parts), out)
        if name == "div" and self.ops[reads[1]].kind == "broadcast":
            return self._add("mul", (reads[0], self._reciprocal(reads[1], out)), out, "")
        if name == "square":
            return self._add("mul", (reads[0], reads[0]), out, "")
        if name == "integer_pow" and eqn.params["y"] in (2, 3):
            square = self._add("mul", (reads[0], reads[0]), out, "")
            return square if eqn.params["y"] == 2 else self._add("mul", (square, reads[0]), out, "")
        if name == "one_minus_square":
            one = self._literal(_ONE, out)
            factors = (self._add("add", (one, reads[0]), out, ""), self._add("sub", (one, reads[0]), out, ""))
            return self._add("mul", factors, out, "")
        if name == "add":
            for scattered, other in (reads, reads[::-1]):
                op = self.ops[scattered]
                if op.kind == "scatter-add" and self.ops[op.reads[0]].constant is not None:
                    return self._add(op.kind, (other, *op.reads[1:]), out, None)
        return self._add(name, reads, out, _params_key(eqn))

    def _reciprocal(self, divisor: int, like: Var) -> int:
        """The broadcast of 1/y for a broadcast of y."""
        op = self.ops[divisor]
        if op.constant is not None:
            return self._literal(self._expression(("1/", op.constant)), like)
        source = self.ops[op.reads[0]]
        one = self._keyed(Op("broadcast", (), source.shape, op.dtype, source.size_bytes, -1, constant=_ONE), _ONE)
        inverse = dataclasses.replace(source, kind="div", reads=(one, op.reads[0]), equation=self._equation, bodies=())
        return self._keyed(dataclasses.replace(op, reads=(self._keyed(inverse, ""),)), ("1/", divisor))

    def _widened(self, read: int, like: Var) -> int:
        op = self.ops[read]
        if op.elements == math.prod(_shape(like)):
            return read
        if op.constant is not None:
            return self._literal(op.constant, like, op)
        return self._keyed(_resized(op, "broadcast", (read,), _shape(like), self._equation), ("to", _shape(like)))

    def _broadcast(self, read: int, out: Var, key: Hashable) -> int:
        op = self.ops[read]
        if op.constant is not None:
            return self._literal(op.constant, out)
        return read if op.elements == math.prod(_shape(out)) else self._add("broadcast", (read,), out, key)

    def _reshaped(self, read: int, out: Var) -> int:
        return self._literal(self.ops[read].constant, out) if self.ops[read].constant is not None else read

    def _dot(self, eqn: Eqn, reads: tuple[int, ...]) -> int:
        (contracts, batches), out = eqn.params["dimension_numbers"], eqn.outvars[0]
        if not batches[0]:
            reads, contracts = self._turned(reads, contracts)
        operands = [
            self._laid_out(read, atom, contract, batch)
            for read, atom, contract, batch in zip(reads, eqn.invars, contracts, batches)
        ]
        rank = len(_shape(eqn.invars[0]))
        trailing = sorted(contracts[0]) == list(range(rank - len(contracts[0]), rank))
        plain = trailing or operands[0] != reads[0]
        if self._backend.dot_copies and not plain and not batches[0] and rank > 2:
            operands[0] = self._copy(reads[0], eqn.invars[0], "contracted first")
        elif not batches[0]:
            operands = [self._flattened(new, atom) for new, atom in zip(operands, eqn.invars)]
        given = eqn.params["dimension_numbers"][0]
        matrix = all(_free_size(a, c, b) > 1 for a, c, b in zip(eqn.invars, given, batches))
        return self._product("dot", tuple(operands), out, _params_key(eqn), FLOATS if plain and matrix else ())

    def _turned(self, reads: tuple[int, ...], contracts: Any) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
        """Operands, and what is contracted of them, with transposes of matrices folded into the product."""
        turned = [(read, tuple(contract)) for read, contract in zip(reads, contracts)]
        for side, (read, contract) in enumerate(turned):
            op = self.ops[read]
            if op.kind == "transpose" and len(op.shape) == 2 and len(contract) == 1:
                turned[side] = op.reads[0], (1 - contract[0],)
        return tuple(read for read, _ in turned), [contract for _, contract in turned]

    def _laid_out(self, read: int, atom: Atom, contract: Sequence[int], batch: Sequence[int]) -> int:
        """The operand, copied where its batch dimensions do not lead or its contracted dimensions are torn apart."""
        rank, leading = len(_shape(atom)), list(batch) == list(range(len(batch)))
        dims = sorted(contract)
        joined = dims in (list(range(len(batch), len(batch) + len(dims))), list(range(rank - len(dims), rank)))
        fits = not self._backend.dot_copies or (leading and joined)
        return read if fits else self._copy(read, atom, (tuple(contract), tuple(batch)))

    def _copy(self, read: int, atom: Atom, key: Hashable) -> int:
        return self._keyed(_resized(self.ops[read], "transpose", (read,), _shape(atom), self._equation), key)

    def _flattened(self, read: int, atom: Atom) -> int:
        op = self.ops[read]
        if len(_shape(atom)) <= 2 or op.kind == "transpose":
            return read
        return self._keyed(_resized(op, "bitcast", (read,), op.shape, self._equation), "matrix")

    def _conv(self, eqn: Eqn, reads: tuple[int, ...]) -> int:
        """A convolution; where operands are copied, of channels last, its result turned as the program has it."""
        dims, out = eqn.params["dimension_numbers"], eqn.outvars[0]
        library = _LIBRARY_CONVOLUTIONS if _conv_in_library(eqn) else ()
        if not self._backend.dot_copies:
            return self._product("conv", reads, out, _params_key(eqn), library)
        image, kernel = (
            read if tuple(spec) == wanted else self._copy(read, atom, tuple(spec))
            for read, atom, spec, wanted in zip(
                reads, eqn.invars, (dims.lhs_spec, dims.rhs_spec), (_channels_last(dims), _kernel_order(dims))
            )
        )
        made = self._product("conv", (image, kernel), out, _params_key(eqn), library)
        return made if tuple(dims.out_spec) == _channels_last(dims) else self._copy(made, out, "result")

    def _product(self, kind: str, reads: tuple[int, ...], out: Var, key: Hashable, library: Container[str]) -> int:
        """A contraction, in its own dtype or in float32; the library takes it in the given dtypes."""
        dtype = _dtype(out)
        widened = self._backend.widened_products
        if dtype in library or widened.isdisjoint({dtype, *(self.ops[read].dtype for read in reads)}):
            return self._add(kind, reads, out, key, in_library=dtype in library)
        wide = tuple(self._float32(read) if self.ops[read].dtype in widened else read for read in reads)
        product = self._op(kind, wide, out, in_library="float32" in library)
        wide_bytes = 4 * math.prod(_shape(out))
        made = self._keyed(dataclasses.replace(product, dtype="float32", size_bytes=wide_bytes), key)
        return made if dtype == "float32" else self._add("convert_element_type", (made,), out, dtype)

    def _float32(self, read: int) -> int:
        op = self.ops[read]
        wide = Op("convert_element_type", (read,), op.shape, "float32", 4 * op.elements, self._equation)
        return self._keyed(wide, "float32")

    def _read(self, atom: Atom, env: dict[Var, int], shape: tuple[int, ...]) -> int:
        if not isinstance(atom, Literal):
            return env[atom]
        size = math.prod(shape) * np.dtype(_dtype(atom)).itemsize
        value = repr(np.asarray(atom.val).tolist())
        return self._keyed(Op("broadcast", (), shape, _dtype(atom), size, -1, constant=value), value)

    def _expression(self, parts: Hashable) -> Hashable:
        """One identity per distinct expression of constants, which does not grow with the expression."""
        return "expression", self._expressions.setdefault(parts, len(self._expressions))

    def _literal(self, constant: Hashable, like: Var, op: Op | None = None) -> int:
        template = _op("broadcast", (), like)
        if op is not None:
            template = _resized(op, "broadcast", (), template.shape, -1)
        return self._keyed(dataclasses.replace(template, constant=constant), constant)

    def _add(self, kind: str, reads: tuple[int, ...], out: Var, key: Hashable, *, in_library: bool = False) -> int:
        op = self._op(kind, reads, out, in_library=in_library)
        return self._append(op) if key is None else self._keyed(op, key)

    def _op(self, kind: str, reads: tuple[int, ...], out: Var, **more: Any) -> Op:
        """An operation of the equation at hand."""
        size_bytes = jaxprs.size_bytes(out)
        if kind in CONTRACTIONS:
            more["flops"] = equation_flops(self._eqn)
        return Op(kind, reads, _shape(out), _dtype(out), size_bytes, self._equation, **more)

    def _keyed(self, op: Op, key: Hashable) -> int:
        """Merges equal operations, whatever the order of operands that may change places."""
        reads = tuple(sorted(op.reads)) if op.kind in COMMUTATIVE else op.reads
        identity = (op.kind, reads, op.shape, op.dtype, key)
        if identity not in self._known:
            self._known[identity] = self._append(op)
        return self._known[identity]

    def _append(self, op: Op) -> int:
        self.ops.append(op)
        return len(self.ops) - 1


def _op(kind: str, reads: tuple[int, ...], var: Var) -> Op:
    return Op(kind, reads, _shape(var), _dtype(var), jaxprs.size_bytes(var))


def _resized(op: Op, kind: str, reads: tuple[int, ...], shape: tuple[int, ...], equation: int) -> Op:
    itemsize = op.size_bytes // max(op.elements, 1)
    return Op(kind, reads, shape, op.dtype, itemsize * math.prod(shape), equation)


def _shape(atom: Atom) -> tuple[int, ...]:
    return tuple(getattr(atom.aval, "shape", ()))


def _dtype(atom: Atom) -> str:
    return _dtype_name(getattr(atom.aval, "dtype", ""))


@functools.cache
def _dtype_name(dtype: Any) -> str:
    return str(dtype)


def _free_size(atom: Atom, contract: Sequence[int], batch: Sequence[int]) -> int:
    return math.prod(size for dim, size in enumerate(_shape(atom)) if dim not in contract and dim not in batch)


def _channels_last(dims: Any) -> tuple[int, ...]:
    spatial = len(dims.lhs_spec) - 2
    return (0, spatial + 1, *range(1, spatial + 1))


def _kernel_order(dims: Any) -> tuple[int, ...]:
    spatial = len(dims.rhs_spec) - 2
    return (spatial + 1, spatial, *range(spatial))


def _conv_in_library(eqn: Eqn) -> bool:
    """Two-dimensional convolutions without dilation of the input, with enough channels, that do not grow the image."""
    dims, params = eqn.params["dimension_numbers"], eqn.params
    out, image = ([_shape(v)[i] for i in spec] for v, spec in zip((eqn.outvars[0], eqn.invars[0]), dims[2::-2]))
    return (
        len(out) == 4
        and params["batch_group_count"] == 1
        and set(params["lhs_dilation"]) <= {1}
        and max(out[1], image[1]) > 16
        and all(after <= before for after, before in zip(out[2:], image[2:]))
    )


def _params_key(eqn: Eqn) -> Hashable:
    """What tells an equation from another of the same primitive."""
    key = tuple((name, value) for name, value in sorted(eqn.params.items()) if name not in ("sharding", "out_sharding"))
    try:
        hash(key)
    except TypeError:
        return repr(key)
    return key
