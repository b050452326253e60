"""In which form values pass barriers: which axes they have, and in which order.

XLA:GPU gives the operands of a product of batches a layout (`GpuLayoutAssignment`), and merges products that read the
same into one, from which each result is sliced (`DotMerger`): queries and keys, say. All slices lie as one of them
wants it, [batch, heads and features, tokens], and products turn the others as they read them. What waits behind a
barrier must be written as its reader there wants it, though: turned twice, once more beside what the forward reads, and
by kernels that took four times as long as a copy (benchmarks/results/gpu.md). So what a product has made, and products
of batches read, lies in the order that all can agree on, and passes barriers so.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax.numpy as jnp
from jax import lax

from jaxremat.backends.backend import Backend
from jaxremat.base.compat import Atom, Eqn, Var
from jaxremat.trace import jaxpr as jaxprs
from jaxremat.trace.joint import Joint


class BarrierForm(Protocol):
    """How a value passes a barrier."""

    def turned(self, value: Any) -> Any:
        """The value as it passes."""

    def restored(self, value: Any, shape: Sequence[int]) -> Any:
        """The value in its shape again."""


class AsItIs:
    """Nothing is done to it."""

    def turned(self, value: Any) -> Any:
        return value

    def restored(self, value: Any, shape: Sequence[int]) -> Any:
        return value


class WithoutUnitAxes:
    """Without axes of length one: by the shapes that a kernel reads, XLA:GPU chooses which rows it works on together,
    and with [64, 4, 512, 1] they lay apart and took twice as long as with [64, 4, 512] (benchmarks/results/gpu.md)."""

    def turned(self, value: Any) -> Any:
        axes = _unit_axes(jnp.shape(value))
        return lax.squeeze(value, axes) if axes else value

    def restored(self, value: Any, shape: Sequence[int]) -> Any:
        axes = _unit_axes(shape)
        return lax.expand_dims(value, axes) if axes else value


@dataclasses.dataclass(frozen=True)
class Order:
    """In another order of axes.

    Attributes:
      axes: of the value without axes of length one, as they follow each other behind the barrier.
      joined: which of these becomes one axis with the next: a reader that wants another one between them cannot ask
        for that where the value is made.
    """

    axes: tuple[int, ...]
    joined: int

    def turned(self, value: Any) -> Any:
        turned = lax.transpose(lax.reshape(value, _long(jnp.shape(value))), self.axes)
        sizes, first = turned.shape, self.joined
        return lax.reshape(turned, (*sizes[:first], math.prod(sizes[first : first + 2]), *sizes[first + 2 :]))

    def restored(self, value: Any, shape: Sequence[int]) -> Any:
        lengths = _long(shape)
        split = lax.reshape(value, tuple(lengths[axis] for axis in self.axes))
        back = tuple(self.axes.index(axis) for axis in range(len(self.axes)))
        return lax.reshape(lax.transpose(split, back), tuple(shape))


AS_IT_IS, WITHOUT_UNIT_AXES = AsItIs(), WithoutUnitAxes()


def orders_for(joint: Joint, backend: Backend) -> dict[Var, Order]:
    """In which order of axes values pass barriers on a device, where that is not as written."""
    return orders_of_operands(joint.eqns) if backend.batch_copies else {}


def orders_of_operands(eqns: Sequence[Eqn]) -> dict[Var, Order]:
    """The order of each result of a product that a product of batches reads, with or without axes of length one."""
    made_by = {v: eqn for eqn in eqns for v in eqn.outvars}
    found: dict[Var, Order] = {}
    for eqn in eqns:
        if eqn.primitive.name != "dot_general":
            continue
        for operand, contracted, batch in zip(eqn.invars, *eqn.params["dimension_numbers"]):
            order = _order(jaxprs.shape_of(operand).shape, contracted, batch)
            if order:
                found = dict.fromkeys(_results_of_products(operand, made_by), order) | found
    return found


def _results_of_products(operand: Atom, made_by: Mapping[Var, Eqn]) -> list[Var]:
    """An operand and what it has its entries of, in the same order, up to the result of a product without batches."""
    lengths, chain, atom = _long(jaxprs.shape_of(operand).shape), [], operand
    while isinstance(atom, Var) and atom in made_by and _long(jaxprs.shape_of(atom).shape) == lengths:
        chain.append(atom)
        eqn = made_by[atom]
        if eqn.primitive.name == "dot_general":
            return [] if eqn.params["dimension_numbers"][1][0] else chain
        if eqn.primitive.name != "reshape":
            break
        atom = eqn.invars[0]
    return []


def _order(shape: Sequence[int], contracted: Sequence[int], batch: Sequence[int]) -> Order | None:
    """The batch first, and beside its last axis what lies beside it as written; None where that is so already, or what
    is contracted would not stay together."""
    axes = [axis for axis, length in enumerate(shape) if length > 1]
    leading = [i for i, axis in enumerate(axes) if axis in batch]
    inner = [i for i, axis in enumerate(axes) if axis in contracted]
    outer = [i for i, axis in enumerate(axes) if axis not in batch and axis not in contracted]
    for rest in ([*inner, *outer], [*outer, *inner]):
        order = (*leading, *rest)
        if leading and rest and rest[0] == leading[-1] + 1 and order != tuple(range(len(axes))):
            return Order(order, len(leading) - 1)
    return None


def _long(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(length for length in shape if length > 1)


def _unit_axes(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(axis for axis, length in enumerate(shape) if length == 1)
