"""Reading and adding a block of an array inside a loop, with derivatives that also touch only that block.

The transpose of `lax.dynamic_slice` is a full array of zeros around the block, which a loop then adds to its sum: the
whole array is touched at every step. Here the array travels with the loop, and each operation is the other's transpose:

    read_block(x, starts, sizes) = (x, x[block])          transpose: add_block(ct_x, ct_block, starts)
    add_block(x, block, starts)  = x with x[block] += block   transpose: read_block(ct, starts, sizes)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

_read_p = Primitive("read_block")
_read_p.multiple_results = True
_add_p = Primitive("add_block")


def read_block(array: jax.Array, starts: Sequence[Any], sizes: Sequence[int]) -> tuple[jax.Array, jax.Array]:
    """Returns the array, to be carried on instead of the one given, and its block of `sizes` at `starts`."""
    carried, block = _read_p.bind(array, *starts, sizes=tuple(sizes))
    return carried, block


def add_block(array: jax.Array, block: jax.Array, starts: Sequence[Any]) -> jax.Array:
    """Returns the array with `block` added at `starts`."""
    return _add_p.bind(array, block, *starts)


def _read(array: Any, *starts: Any, sizes: Any) -> Any:
    return [array, lax.dynamic_slice(array, starts, sizes, allow_negative_indices=False)]


def _add(array: Any, block: Any, *starts: Any) -> Any:
    old = lax.dynamic_slice(array, starts, block.shape, allow_negative_indices=False)
    return lax.dynamic_update_slice(array, old + block, starts, allow_negative_indices=False)


def _read_jvp(primals: Any, tangents: Any, *, sizes: Any) -> Any:
    out = _read_p.bind(*primals, sizes=sizes)
    if isinstance(tangents[0], ad.Zero):
        return out, [_no_tangent(x) for x in out]
    return out, _read_p.bind(tangents[0], *primals[1:], sizes=sizes)


def _no_tangent(x: Any) -> ad.Zero:
    return ad.Zero(jax.typeof(x).to_tangent_aval())


def _add_jvp(primals: Any, tangents: Any) -> Any:
    out = _add_p.bind(*primals)
    if all(isinstance(t, ad.Zero) for t in tangents[:2]):
        return out, _no_tangent(out)
    array, block = (ad.instantiate_zeros(t) for t in tangents[:2])
    return out, _add_p.bind(array, block, *primals[2:])


def _read_transpose(cotangents: Any, array: Any, *starts: Any, sizes: Any) -> Any:
    del array, sizes
    carried, block = cotangents
    if isinstance(block, ad.Zero):
        return [carried, *(None for _ in starts)]
    return [_add_p.bind(ad.instantiate_zeros(carried), block, *starts), *(None for _ in starts)]


def _add_transpose(cotangent: Any, array: Any, block: Any, *starts: Any) -> Any:
    nothing = [None for _ in starts]
    if isinstance(cotangent, ad.Zero):
        return [cotangent if ad.is_undefined_primal(array) else None, None, *nothing]
    if not ad.is_undefined_primal(block):
        return [cotangent, None, *nothing]
    carried, part = _read_p.bind(cotangent, *starts, sizes=block.aval.shape)
    return [carried if ad.is_undefined_primal(array) else None, part, *nothing]


def _read_batch(args: Any, dims: Any, *, sizes: Any) -> Any:
    array, *starts = args
    if any(d is not None for d in dims[1:]):
        in_axes = tuple(dims)
        return jax.vmap(lambda *xs: _read(*xs, sizes=sizes), in_axes)(*args), [0, 0]
    array = jnp.moveaxis(array, dims[0], 0)
    zero = np.zeros((), starts[0].dtype)
    return _read_p.bind(array, zero, *starts, sizes=(array.shape[0], *sizes)), [0, 0]


def _add_batch(args: Any, dims: Any) -> Any:
    array, block, *starts = args
    if any(d is not None for d in dims[2:]):
        in_axes = tuple(dims)
        return jax.vmap(_add, in_axes)(*args), 0
    size = next(x.shape[d] for x, d in zip(args, dims) if d is not None)
    array, block = (
        jnp.broadcast_to(x, (size, *x.shape)) if d is None else jnp.moveaxis(x, d, 0)
        for x, d in zip((array, block), dims)
    )
    return _add_p.bind(array, block, np.zeros((), starts[0].dtype), *starts), 0


_read_p.def_impl(_read)
_add_p.def_impl(_add)
_read_p.def_abstract_eval(lambda x, *starts, sizes: [x, x.update(shape=sizes, weak_type=False)])
_add_p.def_abstract_eval(lambda x, block, *starts: x)
ad.primitive_jvps[_read_p] = _read_jvp
ad.primitive_jvps[_add_p] = _add_jvp
ad.primitive_transposes[_read_p] = _read_transpose
ad.primitive_transposes[_add_p] = _add_transpose
batching.primitive_batchers[_read_p] = _read_batch
batching.primitive_batchers[_add_p] = _add_batch
mlir.register_lowering(_read_p, mlir.lower_fun(_read, multiple_results=True))
mlir.register_lowering(_add_p, mlir.lower_fun(_add, multiple_results=False))
