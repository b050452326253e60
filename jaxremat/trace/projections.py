"""Random projections of what weight gradients read (CompAct, Shamshoum et al., NAACL 2025).

For y = x w the gradient of w is xᵀ dy, summed over the rows of x. With P of n x r random signs over √r, independent of
both, E[P Pᵀ] = I: so P (x P)ᵀ dy is right on average, and all that waits for dy is x P. P is made again from a seed.

A program has no key. The seed is mixed from a sample of x itself: what is computed again gives the same, and other
values, or those of the next step, another one. In any one step the estimate is off by √(n / r) times the gradient; only
over steps do errors average out.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping, Sequence, Set

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxremat.base.compat import Atom, Eqn, Jaxpr, Var
from jaxremat.trace import jaxpr as jaxprs
from jaxremat.trace.late_writes import called_in_place_of
from jaxremat.trace.mixing import mixed, scattered
from jaxremat.trace.primitives import ALIASING, CUTTING

PARTS = 4  # n / r: CompAct trains with 2, 4 and 8
DEVIATION = math.sqrt(PARTS)
"""Of an estimate from the gradient of a weight, in norms: for each column g, E |P Pᵀ g - g|² = (n - 1) / r |g|²."""
LEAST_WIDTH = 64  # r is at least 16, the edge of what a GPU's matrix unit multiplies (CUDA C++ guide, `wmma`)
_SAMPLED = 1024  # entries of x that a seed is mixed from, at most twice as many along each axis

_VIEWS = ALIASING | CUTTING | {"transpose", "convert_element_type"}
"""What gives a weight, or a part of it, in another shape or type."""
_CARRYING = ALIASING | {
    *("transpose", "convert_element_type", "add", "add_any", "neg", "pad", "concatenate", "dynamic_update_slice"),
    *("psum", "psum_invariant"),
}
"""What takes a weight's gradient to where it is returned, and adds it up."""


def stored(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What waits in the place of an array.

    Args:
      x: [..., n].

    Returns:
      ([..., r] of x's dtype, [] the seed of the projection).
    """
    seed = _seed(x)
    projection = _signs(seed, x.shape[-1], x.dtype)
    return _product(x, projection, x.ndim - 1, 0, x.dtype), seed


def restored(waiting: Sequence[jax.Array], like: jax.ShapeDtypeStruct) -> jax.Array:
    """What the array is on average over projections; estimates are made without it (`estimate`)."""
    z, seed = waiting
    return _product(z, _signs(seed, like.shape[-1], z.dtype), z.ndim - 1, 1, like.dtype)


def estimate(product: Eqn, read: Var, waiting: Sequence[Var]) -> Eqn:
    """A call in the place of a product with an array that estimates it from what waits; so the array never comes back.

    Args:
      product: contracts all axes of the array but the last one, as `Readers.only_products` tells.
      read: the array.
      waiting: what is stored, and the seed.
    """
    side = product.invars.index(read)
    width, out = jaxprs.shape_of(read).shape[-1], jaxprs.shape_of(product.outvars[0])
    axis = 0 if side == 0 else len(out.shape) - 1

    def estimate_from_projection(z: jax.Array, seed: jax.Array, other: jax.Array) -> list[jax.Array]:
        operands = (z, other) if side == 0 else (other, z)
        narrow = product.primitive.bind(*operands, **product.params)
        wide = _product(narrow, _signs(seed, width, narrow.dtype), axis, 1, out.dtype)
        return [jnp.moveaxis(wide, -1, axis)]

    return called_in_place_of(product, estimate_from_projection, [*waiting, product.invars[1 - side]])


def is_worth_projecting(shape: jax.ShapeDtypeStruct) -> bool:
    """Whether an array is wide enough, and has as many rows: a projection is then smaller than what it saves."""
    wide = bool(shape.shape) and shape.shape[-1] >= LEAST_WIDTH
    return wide and jnp.issubdtype(shape.dtype, jnp.floating) and math.prod(shape.shape[:-1]) >= shape.shape[-1]


def views_of(eqns: Iterable[Eqn], given: Iterable[Var]) -> set[Var]:
    """Variables, and what equations make of them by other shapes, types and parts alone."""
    views = set(given)
    for eqn in eqns:
        if eqn.primitive.name in _VIEWS and not views.isdisjoint(jaxprs.vars_of(eqn.invars[:1])):
            views.update(eqn.outvars)
    return views


@dataclasses.dataclass(frozen=True, eq=False)
class Readers:
    """Who reads what in a differentiated program.

    Attributes:
      jaxpr: the program.
      late: [E] bool, its backward.
      weights: inputs whose gradients may be estimates.
    """

    jaxpr: Jaxpr
    late: np.ndarray
    weights: Set[Var]

    def only_products(self, var: Var) -> bool:
        """Whether all that the backward computes of an array [..., n] are gradients of weights, which sum over all of
        its axes but the last: the transposes of products with weights, returned as they are or added up."""
        early, late = (self._of(var, is_late) for is_late in (False, True))
        with_weights = [eqn for eqn in early if _contracts(eqn, var, is_last=True)]
        return (
            bool(late and with_weights)
            and all(_other(eqn, var) in self._views for eqn in with_weights)
            and all(_is_weight_gradient(eqn, var) and eqn.outvars[0] in self._only_returned for eqn in late)
        )

    def _of(self, var: Var, is_late: bool) -> list[Eqn]:
        return [eqn for eqn, late in self._readers.get(var, ()) if late == is_late]

    @functools.cached_property
    def _readers(self) -> Mapping[Var, Sequence[tuple[Eqn, bool]]]:
        readers: dict[Var, list[tuple[Eqn, bool]]] = collections.defaultdict(list)
        for eqn, is_late in zip(self.jaxpr.eqns, self.late.tolist()):
            for var in dict.fromkeys(jaxprs.vars_of(eqn.invars)):
                readers[var].append((eqn, is_late))
        return readers

    @functools.cached_property
    def _views(self) -> set[Var]:
        return views_of(self.jaxpr.eqns, self.weights)

    @functools.cached_property
    def _only_returned(self) -> set[Var]:
        """What goes nowhere but to results, in other shapes and types, or in sums."""
        found: set[Var] = set()
        for eqn in reversed(self.jaxpr.eqns):
            for var in eqn.outvars:
                readers = [reader for reader, _ in self._readers.get(var, ())]
                if all(each.primitive.name in _CARRYING and found.issuperset(each.outvars) for each in readers):
                    found.add(var)
        return found


def _is_weight_gradient(eqn: Eqn, var: Var) -> bool:
    """Whether an equation is a product that sums over all axes of an array but the last one."""
    return _contracts(eqn, var, is_last=False) and not eqn.params.get("out_sharding")


def _contracts(eqn: Eqn, var: Var, *, is_last: bool) -> bool:
    """Whether an equation multiplies an array with another one, and sums over its last axis, or over all others."""
    if eqn.primitive.name != "dot_general" or [atom is var for atom in eqn.invars].count(True) != 1:
        return False
    contracted, batch = eqn.params["dimension_numbers"]
    side, last = eqn.invars.index(var), len(jaxprs.shape_of(var).shape) - 1
    if is_last:
        return last in contracted[side]
    return not batch[side] and set(contracted[side]) == set(range(last))


def _other(eqn: Eqn, var: Var) -> Atom:
    return eqn.invars[1 - eqn.invars.index(var)]


def _product(x: jax.Array, signs: jax.Array, axis: int, signs_axis: int, dtype: np.dtype) -> jax.Array:
    """The product of an array with a projection, along an axis of each; the new axis is the last."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    summed = lax.dot_general(x, signs, (((axis,), (signs_axis,)), ((), ())), preferred_element_type=wide)
    return (summed / math.sqrt(signs.shape[1])).astype(dtype)


def _signs(seed: jax.Array, width: int, dtype: np.dtype) -> jax.Array:
    """[n, r] of 1 and -1, as a seed has it."""
    shape = width, width // PARTS
    rows, columns = (lax.broadcasted_iota(np.uint32, shape, axis) for axis in (0, 1))
    bits = mixed(mixed(rows * np.uint32(shape[1]) + columns) ^ lax.broadcast(seed, shape))
    return (1 - 2 * (bits >> np.uint32(31)).astype(np.int8)).astype(dtype)


def _seed(x: jax.Array) -> jax.Array:
    """[] uint32, mixed from entries that lie evenly over an array."""
    each = math.ceil(_SAMPLED ** (1 / x.ndim))
    strides = [max(1, length // each) for length in x.shape]
    sample = lax.slice(x, [0] * x.ndim, x.shape, strides).astype(jnp.float32).reshape(-1)
    bits = lax.bitcast_convert_type(sample, np.uint32)
    return mixed(jnp.sum(mixed(bits ^ scattered(lax.iota(np.uint32, sample.size))), dtype=np.uint32))
