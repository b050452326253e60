"""A selected weight on its way from the parameters to the products that consume it.

Between the two stand casts, transposes, reshapes, slices: this file follows them on the weight and does the same to its
compressed variable, which has the weight's axes without the input axes, and the rank last.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxremat.base import compat
from jaxremat.base.compat import Eqn, Literal


class UnfollowedError(Exception):
    """A weight is consumed by something that its compressed variable cannot follow; the text says by what."""


@dataclasses.dataclass(frozen=True, order=True)
class Atom:
    """A factor of a parameter's axis: `size` positions that are `stride` apart. Axis -1: made by broadcasting."""

    axis: int
    stride: int
    size: int


Dim = tuple[Atom, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class LoopIndex:
    """The iteration number of one loop while its body is traced; two of them are equal only if they are the same."""

    value: Any


@dataclasses.dataclass(frozen=True)
class Parameter:
    """What is known of a selected parameter before the program is read.

    Attributes:
      leaf: its position among the flattened parameters.
      path: such as `params/block_0/up/kernel`.
      shape: its full shape.
      in_axes: the axes that its products contract, ascending; None while they are being looked for.
    """

    leaf: int
    path: str
    shape: tuple[int, ...]
    in_axes: tuple[int, ...] | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Weight:
    """A view of a parameter.

    Attributes:
      value: the array itself.
      variable: its compressed variable, the kept dimensions in the order of `value` and then the rank; None while
        the input axes are being looked for.
      parameter: which one it is.
      dims: for each dimension of `value`, the factors of the parameter's axes that it runs over, outermost first.
      layers: (parameter axis, loop) for each whole axis that a loop has taken a slice of.
    """

    value: Any
    variable: Any
    parameter: Parameter = dataclasses.field(metadata={"static": True})
    dims: tuple[Dim, ...] = dataclasses.field(metadata={"static": True})
    layers: tuple[tuple[int, LoopIndex], ...] = dataclasses.field(default=(), metadata={"static": True})

    @property
    def kept(self) -> list[int]:
        """The dimensions of `value` that the compressed variable has too."""
        inputs = self.parameter.in_axes or ()
        flags = [{atom.axis in inputs for atom in dim} or {False} for dim in self.dims]
        if any(len(flag) > 1 for flag in flags):
            raise UnfollowedError("a reshape merges its input axis with another one")
        return [d for d, flag in enumerate(flags) if flag == {False}]

    def becomes(self, value: Any, dims: Sequence[Dim], variable: Callable[..., Any]) -> Weight:
        """The weight after one step; `variable` does the same step to the compressed variable."""
        after = dataclasses.replace(self, value=value, dims=tuple(dims))
        moved = None if self.variable is None else variable(self.variable, self.kept, after.kept)
        return dataclasses.replace(after, variable=moved)


def whole(parameter: Parameter, value: Any, variable: Any = None) -> Weight:
    """The view of a parameter as it stands."""
    dims = tuple((Atom(axis, 1, size),) if size > 1 else () for axis, size in enumerate(parameter.shape))
    return Weight(value, variable, parameter, dims)


def regroup(dims: Sequence[Dim], shape: Sequence[int]) -> tuple[Dim, ...]:
    """The factors of each dimension after a row-major reshape to `shape`."""
    left = [atom for dim in dims for atom in dim][::-1]
    groups = []
    for size in shape:
        group: list[Atom] = []
        need = size
        while need > 1:
            atom = left.pop()
            if need % atom.size == 0:
                group.append(atom)
                need //= atom.size
            elif atom.size % need == 0:
                inner = atom.size // need
                group.append(Atom(atom.axis, atom.stride * inner, need))
                left.append(Atom(atom.axis, atom.stride, inner))
                need = 1
            else:
                raise UnfollowedError("a reshape cuts its axes at a place that is not a divisor")
        groups.append(tuple(group))
    return tuple(groups)


def _sliced(dim: Dim, size: int) -> Dim:
    """The factors of a dimension that was cut to `size` positions; one that is no longer whole keeps its axis only."""
    if math.prod(atom.size for atom in dim) == size:
        return dim
    axis = dim[0].axis if len(dim) == 1 else -1
    return (Atom(axis, 1, size),) if size > 1 else ()


def _same(eqn: Eqn, inputs: list[Any], weight: Weight) -> list[Any]:
    values = compat.bind(eqn, [x.value if isinstance(x, Weight) else x for x in inputs])
    return [
        x.becomes(value, x.dims, lambda z, *_: z) if isinstance(x, Weight) else value
        for x, value in zip(inputs, values, strict=True)
    ]


def _convert(eqn: Eqn, inputs: list[Any], weight: Weight) -> list[Any]:
    (value,) = compat.bind(eqn, [weight.value])
    return [weight.becomes(value, weight.dims, lambda z, *_: z.astype(value.dtype))]


def _transpose(eqn: Eqn, inputs: list[Any], weight: Weight) -> list[Any]:
    order = eqn.params["permutation"]

    def step(z: Any, before: Any, after: Any) -> Any:
        return z.transpose(*[before.index(d) for d in order if d in before], z.ndim - 1)

    return [weight.becomes(compat.bind(eqn, [weight.value])[0], [weight.dims[d] for d in order], step)]


def _reshape(eqn: Eqn, inputs: list[Any], weight: Weight) -> list[Any]:
    (value,) = compat.bind(eqn, [weight.value])

    def step(z: Any, before: Any, after: Any) -> Any:
        return z.reshape(*[value.shape[d] for d in after], z.shape[-1])

    return [weight.becomes(value, regroup(weight.dims, value.shape), step)]


def _broadcast(eqn: Eqn, inputs: list[Any], weight: Weight) -> list[Any]:
    (value,) = compat.bind(eqn, [weight.value, *inputs[1:]])
    targets = list(eqn.params["broadcast_dimensions"])
    dims: list[Dim] = [(Atom(-1, 1, size),) if size > 1 else () for size in value.shape]
    for source, target in enumerate(targets):
        if weight.value.shape[source] == value.shape[target]:
            dims[target] = weight.dims[source]

    def step(z: Any, before: Any, after: Any) -> Any:
        places = [after.index(targets[d]) for d in before]
        return lax.broadcast_in_dim(z, (*[value.shape[d] for d in after], z.shape[-1]), (*places, len(after)))

    return [weight.becomes(value, dims, step)]


def _cut(weight: Weight, value: Any, slice_variable: Callable[..., Any]) -> Weight:
    dims = [_sliced(dim, size) for dim, size in zip(weight.dims, value.shape, strict=True)]
    cut = [d for d, size in enumerate(value.shape) if size != weight.value.shape[d]]

    def step(z: Any, before: Any, after: Any) -> Any:
        if any(d not in before for d in cut):
            raise UnfollowedError("a slice cuts its input axis")
        return slice_variable(z, before)

    return weight.becomes(value, dims, step)


def _slice(eqn: Eqn, inputs: list[Any], weight: Weight) -> list[Any]:
    def cut(z: Any, kept: Any) -> Any:
        starts, limits, strides = (eqn.params[k] for k in ("start_indices", "limit_indices", "strides"))
        pick = lambda xs, last: (*[xs[d] for d in kept], last)
        return lax.slice(z, pick(starts, 0), pick(limits, z.shape[-1]), strides and pick(strides, 1))

    return [_cut(weight, compat.bind(eqn, [weight.value])[0], cut)]


def _dynamic_slice(eqn: Eqn, inputs: list[Any], weight: Weight) -> list[Any]:
    _, *starts = inputs
    (value,) = compat.bind(eqn, [weight.value, *starts])

    def cut(z: Any, kept: Any) -> Any:
        zero = jnp.zeros((), starts[0].dtype if starts else jnp.int32)
        sizes = (*[value.shape[d] for d in kept], z.shape[-1])
        return lax.dynamic_slice(z, (*[starts[d] for d in kept], zero), sizes)

    return [_cut(weight, value, cut)]


def _split(eqn: Eqn, inputs: list[Any], weight: Weight) -> list[Any]:
    axis, sizes = eqn.params["axis"], eqn.params["sizes"]
    starts = np.cumsum((0, *sizes[:-1])).tolist()
    cut = lambda start, size: lambda z, kept: lax.slice_in_dim(z, start, start + size, axis=kept.index(axis))
    values = compat.bind(eqn, [weight.value])
    return [_cut(weight, v, cut(start, size)) for v, start, size in zip(values, starts, sizes, strict=True)]


def _scale(eqn: Eqn, inputs: list[Any], weight: Weight) -> list[Any]:
    factors = [x for x in inputs if x is not weight]
    constants = [a for a in eqn.invars if isinstance(a, Literal) and not np.shape(a.val)]
    linear = inputs[0] is weight or eqn.primitive.name == "mul"
    if len(constants) != len(inputs) - 1 or not linear:
        raise UnfollowedError(f"{eqn.primitive.name} with something that is not a constant number")
    values = [x.value if x is weight else x for x in inputs]
    operation = {"mul": lambda z: z * factors[0], "div": lambda z: z / factors[0], "neg": lambda z: -z}
    step = lambda z, *_: operation[eqn.primitive.name](z).astype(z.dtype)
    return [weight.becomes(compat.bind(eqn, values)[0], weight.dims, step)]


FOLLOW: dict[str, Callable[[Eqn, list[Any], Weight], list[Any]]] = {
    "copy": _same,
    "copy_p": _same,
    "name": _same,
    "reduce_precision": _same,
    "sharding_constraint": _same,
    "optimization_barrier": _same,
    "convert_element_type": _convert,
    "transpose": _transpose,
    "reshape": _reshape,
    "squeeze": _reshape,
    "expand_dims": _reshape,
    "broadcast_in_dim": _broadcast,
    "slice": _slice,
    "dynamic_slice": _dynamic_slice,
    "split": _split,
    "mul": _scale,
    "div": _scale,
    "neg": _scale,
}
