"""What consumes the selected weights of a program, and the same program reading compressed inputs instead.

One tracer of weights does both. Looking (no key): it follows every selected weight to the `dot_general`s that consume
it and records which axes they contract, which weights share an input, and what cannot be followed. Compressing (with a
key): it gives each of those products the derivative of `projection.with_derivative`. Weights are followed through jit,
scan, cond and remat; inside a function with its own differentiation rule the rule's weight gradient is projected
instead.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxremat.base import compat
from jaxremat.base.compat import Atom, Eqn, Jaxpr, Var
from jaxremat.compact.projection import expand, lift, projection, with_derivative
from jaxremat.compact.weight import FOLLOW, LoopIndex, UnfollowedError, Weight
from jaxremat.trace import walk
from jaxremat.trace.jaxpr import called_body, evaluate, shape_of, vars_of
from jaxremat.trace.primitives import ALIASING, CALLS, CHECKPOINTS, OWN_RULES

_SAME_WHEN_REPEATED = ALIASING | {"convert_element_type", "transpose", "broadcast_in_dim"}


@dataclasses.dataclass
class Uses:
    """What a program does with the weights that were followed; keys are leaf numbers.

    Attributes:
      in_axes: the parameter axes that its products contract, ascending.
      group: the first weight that reads the same input: both use its projection.
      layers: the parameter axes that loops slice, outermost loop first; each slice has a projection of its own.
      refusals: why a weight cannot be compressed.
    """

    in_axes: dict[int, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    group: dict[int, int] = dataclasses.field(default_factory=dict)
    layers: dict[int, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    refusals: dict[int, str] = dataclasses.field(default_factory=dict)

    def refuse(self, weight: Weight, reason: str, eqn: Eqn) -> None:
        where = compat.source_line(eqn)
        text = f"{reason} (`{eqn.primitive.name}`{f' at {where}' if where else ''})"
        self.refusals.setdefault(weight.parameter.leaf, text)

    def share_between_layers(self, leaf: int) -> None:
        """Gives all slices of a weight, and of those that share its projection, one projection."""
        for other, group in self.group.items():
            if group == self.group[leaf]:
                self.layers[other] = ()


def find_uses(jaxpr: Jaxpr, inputs: Sequence[Any], wanted: Sequence[Atom]) -> Uses:
    """Follows the weights among `inputs` (their `variable` is None) through the equations that `wanted` needs."""
    uses = Uses()
    WeightTracer(uses, None).run(jaxpr, inputs, wanted)
    return uses


def compress(jaxpr: Jaxpr, inputs: Sequence[Any], wanted: Sequence[Atom], uses: Uses, key: jax.Array) -> list[Any]:
    """Runs a program whose products with the weights among `inputs` keep projections of their other operand."""
    outputs = WeightTracer(uses, key).run(jaxpr, inputs, wanted)
    return [x.value if isinstance(x, Weight) else x for x in outputs]


def group_key(uses: Uses, key: Any, leaf: int, positions: Sequence[Any] = ()) -> jax.Array:
    """The key of a weight's projection, at the given positions along its layer axes."""
    return functools.reduce(jax.random.fold_in, positions, jax.random.fold_in(key, uses.group[leaf]))


class WeightTracer:
    """The rule of one jaxpr body: what to do with an equation that reads a weight."""

    def __init__(self, uses: Uses, key: jax.Array | None, needed: frozenset[Var] = frozenset()) -> None:
        self.uses = uses
        self.key = key
        self.needed = needed
        self.repeated: dict[Any, Any] = {}
        self.first: dict[Any, Any] = {}
        self.readers: dict[Any, Any] = {}
        self.projected: dict[Any, Any] = {}

    def run(self, jaxpr: Jaxpr, inputs: Sequence[Any], wanted: Sequence[Atom] | None = None) -> list[Any]:
        """Evaluates a body in a scope of its own."""
        needed = live_vars(jaxpr, jaxpr.outvars if wanted is None else wanted)
        return evaluate(jaxpr, inputs, WeightTracer(self.uses, self.key, needed).rule)

    def rule(self, eqn: Eqn, inputs: list[Any]) -> list[Any] | None:
        weights = [x for x in inputs if isinstance(x, Weight)]
        if not weights:
            return self._recognise(eqn, inputs)
        plain = [x.value if isinstance(x, Weight) else x for x in inputs]
        if self.needed.isdisjoint(eqn.outvars) or not any(_has_gradient(v) for v in eqn.outvars):
            return compat.bind(eqn, plain)
        try:
            return self._consume(eqn, inputs, weights)
        except UnfollowedError as error:
            for weight in weights:
                self.uses.refuse(weight, str(error), eqn)
            return compat.bind(eqn, plain)

    def _consume(self, eqn: Eqn, inputs: list[Any], weights: list[Weight]) -> list[Any]:
        name = compat.primitive_name(eqn)
        if name == "dot_general":
            return [self._product(eqn, inputs)]
        inside = self._inside(name)
        if inside is not None:
            with compat.at_position_of(eqn):
                return inside(eqn, inputs)
        if name in OWN_RULES:
            return self._own_rule(eqn, inputs)
        if name == "stop_gradient":
            return compat.bind(eqn, [weights[0].value])
        if name in FOLLOW and (len(weights) == 1 or name == "optimization_barrier"):
            return FOLLOW[name](eqn, inputs, weights[0])
        raise UnfollowedError("it is consumed by something other than a matrix product")

    def _inside(self, name: str) -> Callable[[Eqn, list[Any]], list[Any]] | None:
        """How to follow a weight into the bodies of an equation, by the name of its primitive."""
        structured = {"scan": self._scan, "cond": self._cond}
        families = dict.fromkeys(CALLS, self._call) | dict.fromkeys(CHECKPOINTS, self._checkpoint) | structured
        return families.get(name)

    def _recognise(self, eqn: Eqn, inputs: list[Any]) -> list[Any] | None:
        """Runs casts and reshapes, remembering which repeat an earlier one: layers may each cast one input."""
        if compat.primitive_name(eqn) not in _SAME_WHEN_REPEATED:
            return None
        inputs_seen = [self._first(x) for x in inputs]
        key = (eqn.primitive, str(eqn.params), *map(id, inputs_seen))
        outputs = compat.bind(eqn, inputs)
        _, first = self.repeated.setdefault(key, (inputs_seen, outputs[0]))
        self.first[id(outputs[0])] = outputs[0], first
        return outputs

    def _first(self, x: Any) -> Any:
        """The first array of this body that was computed as `x` was."""
        return self.first.get(id(x), (x, x))[1]

    def _product(self, eqn: Eqn, inputs: list[Any]) -> jax.Array:
        side = next(i for i, x in enumerate(inputs) if isinstance(x, Weight))
        weight, other = inputs[side], inputs[1 - side]
        if isinstance(other, Weight):
            raise UnfollowedError(
                f"both operands of a product are selected ({weight.parameter.path}, {other.parameter.path})"
            )
        numbers = eqn.params["dimension_numbers"]
        pairs = sorted(zip(numbers[0][side], numbers[0][1 - side]), key=lambda pair: _place(weight.dims[pair[0]]))
        shared = self._first(other)
        self._record(weight, shared, pairs)
        value = compat.bind(eqn, [weight.value, other] if side == 0 else [other, weight.value])[0]
        if self.key is None:
            return value
        with compat.at_position_of(eqn):
            left = self._project(weight, shared, [x for _, x in pairs])
        compressed = _compressed_numbers(numbers, tuple(len(shape_of(v).shape) for v in eqn.invars))
        product = _Product(side, compressed, eqn.params["precision"], value.dtype)
        return with_derivative(product, value, left, weight.variable)

    def _record(self, weight: Weight, other: Any, pairs: list[tuple[int, int]]) -> None:
        """Notes one product: the axes it contracts, who shares its input, and which loops have sliced the weight."""
        parameter, uses = weight.parameter, self.uses
        in_axes = _contracted_axes(weight, [d for d, _ in pairs])
        if uses.in_axes.setdefault(parameter.leaf, in_axes) != in_axes:
            first = uses.in_axes[parameter.leaf]
            raise UnfollowedError(f"one product contracts its axes {first}, another one its axes {in_axes}")
        layers = tuple(axis for axis, _ in weight.layers)
        reader = (id(other), tuple(x for _, x in pairs), tuple(loop for _, loop in weight.layers))
        if parameter.leaf not in uses.group:
            first_reader = self.readers.setdefault(reader, (other, parameter.leaf))[1]
            uses.group[parameter.leaf] = uses.group.get(first_reader, parameter.leaf)
            uses.layers[parameter.leaf] = uses.layers.get(first_reader, layers) and layers
        elif uses.layers[parameter.leaf] not in (layers, ()):
            uses.share_between_layers(parameter.leaf)

    def _key_of(self, weight: Weight) -> jax.Array:
        folded = self.uses.layers[weight.parameter.leaf]
        positions = [loop.value for axis, loop in weight.layers if axis in folded]
        return group_key(self.uses, self.key, weight.parameter.leaf, positions)

    def _project(self, weight: Weight, other: Any, dims: list[int]) -> jax.Array:
        """The input with its contracted dimensions replaced by one of width rank, at the end; once per input."""
        leaf = weight.parameter.leaf
        folded = bool(self.uses.layers[leaf]) and tuple(loop for _, loop in weight.layers)
        cached = (id(other), tuple(dims), self.uses.group[leaf], folded)
        if cached not in self.projected:
            sizes, rank = [other.shape[d] for d in dims], weight.variable.shape[-1]
            matrix = projection(self._key_of(weight), math.prod(sizes), rank, other.dtype).reshape(*sizes, rank)
            contraction = ((tuple(dims), tuple(range(len(dims)))), ((), ()))
            self.projected[cached] = other, lax.dot_general(lax.stop_gradient(other), matrix, contraction)
        return self.projected[cached][1]

    def _call(self, eqn: Eqn, inputs: list[Any]) -> list[Any]:
        body = called_body(eqn)
        assert body is not None
        wanted = [inner for inner, outer in zip(body.outvars, eqn.outvars) if outer in self.needed]
        self.needed |= live_vars(body, wanted)
        return evaluate(body, inputs, self.rule)

    def _checkpoint(self, eqn: Eqn, inputs: list[Any]) -> list[Any]:
        (body,) = walk.bodies(eqn)
        return walk.checkpoint_again(eqn, lambda *xs: self._plain(eqn, self.run(body, xs)))(*inputs)

    def _cond(self, eqn: Eqn, inputs: list[Any]) -> list[Any]:
        index, *operands = inputs
        branches = [lambda xs, body=body: self._plain(eqn, self.run(body, xs)) for body in eqn.params["branches"]]
        return lax.switch(index, branches, operands)

    def _scan(self, eqn: Eqn, inputs: list[Any]) -> list[Any]:
        body, length = eqn.params["jaxpr"], eqn.params["length"]
        n_consts, n_carry = compat.scan_arity(eqn)
        n_fixed = n_consts + n_carry
        fixed, xs = list(inputs[:n_fixed]), inputs[n_fixed:]
        for i in range(n_consts, n_fixed):
            if isinstance(fixed[i], Weight) and body.outvars[i - n_consts] is not body.invars[i]:
                raise UnfollowedError("a loop carries it and changes it")
        varying = [i for i in range(n_consts, n_fixed) if not isinstance(fixed[i], Weight)]

        def step(carry: Any, slices: Any) -> Any:
            index, taken = slices
            loop = LoopIndex(index)
            scanned = [_taken(x, s, loop) if isinstance(x, Weight) else s for x, s in zip(xs, taken)]
            here = list(fixed)
            for i, value in zip(varying, carry):
                here[i] = value
            outputs = self.run(body, here + scanned)
            after, ys = outputs[:n_carry], outputs[n_carry:]
            return self._plain(eqn, [after[i - n_consts] for i in varying]), self._plain(eqn, ys)

        options = {k: eqn.params[k] for k in ("reverse", "unroll", "_split_transpose") if k in eqn.params}
        leading = [_leading(x) if isinstance(x, Weight) else x for x in xs]
        init = [fixed[i] for i in varying]
        after, ys = lax.scan(step, init, (jnp.arange(length), leading), length, **options)
        for i, value in zip(varying, after):
            fixed[i] = value
        return fixed[n_consts:] + list(ys)

    def _own_rule(self, eqn: Eqn, inputs: list[Any]) -> list[Any]:
        """Keeps a function's own differentiation rule, and projects the weight gradient that it returns."""
        if self.key is None:
            self._plain(eqn, self.run(eqn.params[OWN_RULES[eqn.primitive.name]], inputs))
            return compat.bind(eqn, [x.value if isinstance(x, Weight) else x for x in inputs])
        return compat.bind(eqn, [self._lifted(x) if isinstance(x, Weight) else x for x in inputs])

    def _lifted(self, weight: Weight) -> jax.Array:
        if weight.parameter.leaf not in self.uses.group:
            return weight.value
        kept = weight.kept
        in_dims = tuple(d for d in range(weight.value.ndim) if d not in kept)
        order = sorted(in_dims, key=lambda d: _place(weight.dims[d]))
        if list(in_dims) != order:
            raise UnfollowedError("its input axes are permuted before a function with its own differentiation rule")
        shape, rank = weight.value.shape, weight.variable.shape[-1]
        width = math.prod(shape[d] for d in in_dims)
        draw = lambda words: projection(jax.random.wrap_key_data(words), width, rank, weight.value.dtype)
        back = lambda matrix, z: expand(in_dims, shape, matrix, z).astype(weight.value.dtype)
        return lift(back, draw, weight.value, weight.variable, jax.random.key_data(self._key_of(weight)))

    def _plain(self, eqn: Eqn, outputs: list[Any]) -> list[Any]:
        """The outputs of a body, where a weight that leaves it is refused."""
        for x in outputs:
            if isinstance(x, Weight):
                self.uses.refuse(x, "it leaves the body of a loop, a branch or a custom rule", eqn)
        return [x.value if isinstance(x, Weight) else x for x in outputs]


@dataclasses.dataclass(frozen=True)
class _Product:
    """The product of a compressed input and a compressed variable, laid out like the product that it stands for."""

    side: int
    numbers: tuple[Any, ...]
    precision: Any
    dtype: Any

    def __call__(self, left: jax.Array, variable: jax.Array) -> jax.Array:
        operands = (variable, left) if self.side == 0 else (left, variable)
        return lax.dot_general(*operands, self.numbers, self.precision, self.dtype)


def _compressed_numbers(numbers: tuple[Any, ...], ndims: tuple[int, ...]) -> tuple[Any, ...]:
    """Dimension numbers after the contracted dimensions of both operands became one, their last."""
    contracted, batch = numbers
    last = tuple((ndim - len(gone),) for ndim, gone in zip(ndims, contracted))
    moved = tuple(tuple(d - sum(g < d for g in gone) for d in dims) for dims, gone in zip(batch, contracted))
    return last, moved


def live_vars(jaxpr: Jaxpr, wanted: Sequence[Any]) -> frozenset[Var]:
    """The variables that the wanted outputs of a jaxpr are computed from."""
    live = set(vars_of(wanted))
    for eqn in reversed(jaxpr.eqns):
        if not live.isdisjoint(eqn.outvars):
            live.update(vars_of(eqn.invars))
    return frozenset(live)


def _has_gradient(var: Var) -> bool:
    return jnp.issubdtype(getattr(var.aval, "dtype", jnp.int32), jnp.inexact)


def _place(dim: Any) -> tuple[Any, ...]:
    """Sorts dimensions as the parameter's axes are laid out."""
    return (dim[0].axis, -dim[0].stride) if dim else (-1, 0)


def _contracted_axes(weight: Weight, dims: list[int]) -> tuple[int, ...]:
    """The parameter's axes that dimensions `dims`, sorted by place, run over; they must be whole and in order."""
    atoms = [atom for d in dims for atom in weight.dims[d]]
    axes = tuple(sorted({atom.axis for atom in atoms}))
    shape = weight.parameter.shape
    covered = [math.prod(atom.size for atom in atoms if atom.axis == axis) for axis in axes]
    in_order = sorted(atoms, key=lambda atom: (atom.axis, -atom.stride)) == atoms
    if not axes or axes[0] < 0 or covered != [shape[axis] for axis in axes] or not in_order:
        raise UnfollowedError("a product contracts only a part of its input axis, or a mixture of its axes")
    return axes


def _taken(weight: Weight, slices: tuple[Any, ...], loop: LoopIndex) -> Weight:
    """The slice of a stacked weight that one iteration reads."""
    value, variable = slices
    atoms, *dims = weight.dims
    whole = len(atoms) == 1 and atoms[0].size == weight.parameter.shape[atoms[0].axis]
    layers = (*weight.layers, (atoms[0].axis, loop)) if whole else weight.layers
    return Weight(value, variable, weight.parameter, tuple(dims), layers)


def _leading(weight: Weight) -> tuple[Any, ...]:
    if weight.dims and 0 not in weight.kept:
        raise UnfollowedError("a loop slices its input axis")
    return weight.value, weight.variable
