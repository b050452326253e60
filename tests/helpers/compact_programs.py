"""Small losses that consume a weight `w` in every way that must be followed, and the input axes that it has there."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


@dataclasses.dataclass(frozen=True)
class Case:
    """A loss over {"w": ..., "b": ...} and one input, with the axes of `w` that are contracted."""

    loss: Callable
    w: tuple[int, ...]
    x: tuple[int, ...]
    in_axes: tuple[int, ...]
    layers: tuple[int, ...] = ()


def _loss(apply):
    """A loss that is not linear in what `apply(w, x)` returns; the input passes a trainable gain first."""

    def loss(params, x):
        y = apply(params["w"], jnp.tanh(x * params["b"]))
        return jnp.sum(jnp.sin(y.astype(jnp.float32) * 1.3)) + jnp.mean(y.astype(jnp.float32) ** 2)

    return loss


@jax.custom_vjp
def _own_product(x, w):
    return x @ w


_own_product.defvjp(lambda x, w: (x @ w, (x, w)), lambda saved, g: (2 * g @ saved[1].T, saved[0].T @ g))


@jax.custom_jvp
def _own_tangent(x, w):
    return x @ w


_own_tangent.defjvp(lambda primals, ts: (primals[0] @ primals[1], 3 * ts[0] @ primals[1] + primals[0] @ ts[1]))


def _layers(**options):
    return lambda w, x: lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, w, **options)[0]


def _nested(w, x):
    inner = lambda h, ws: lax.scan(lambda h, w: (jnp.tanh(h @ w), None), h, ws)
    return lax.scan(inner, x, w)[0]


def _carried(w, x):
    return lax.scan(
        lambda carry, _: ((jnp.tanh(carry[0] @ carry[1]), carry[1]), carry[0].sum()), (x, w), None, length=3
    )[0][0]


def _qkv(w, x):
    q, k, v = jnp.split(w, 3, axis=1)
    return (x @ q) * (x @ k) + x @ v


def _heads(w, x):
    return jnp.einsum("bn,nhd->bhd", x, w.reshape(w.shape[0], 2, -1))


def _unrolled(w, x):
    for i in range(w.shape[0]):
        x = jnp.tanh(x @ w[i])
    return x


def _indexed(w, x):
    return lax.fori_loop(0, 3, lambda i, h: jnp.tanh(h @ w[i]), x)


def _scanned_and_indexed(w, x):
    return _layers()(w, x) @ w[0]


CASES = {
    "plain": Case(_loss(lambda w, x: x @ w), (8, 6), (5, 8), (0,)),
    "transposed": Case(_loss(lambda w, x: x @ w.T), (6, 8), (5, 8), (1,)),
    "contracted last": Case(_loss(lambda w, x: jnp.einsum("bn,mn->bm", x, w)), (6, 8), (5, 8), (1,)),
    "weight first": Case(_loss(lambda w, x: w @ x), (6, 8), (8, 5), (1,)),
    "input axis of x first": Case(_loss(lambda w, x: jnp.einsum("nb,nm->mb", x, w)), (8, 6), (8, 5), (0,)),
    "heads out": Case(_loss(lambda w, x: jnp.einsum("btn,nhd->bhtd", x, w)), (8, 2, 3), (2, 5, 8), (0,)),
    "heads in": Case(_loss(lambda w, x: jnp.einsum("bthd,hdn->btn", x, w)), (2, 4, 6), (2, 5, 2, 4), (0, 1)),
    "heads in, mixed": Case(_loss(lambda w, x: jnp.einsum("btdh,hnd->btn", x, w)), (2, 6, 4), (2, 5, 4, 2), (0, 2)),
    "experts": Case(_loss(lambda w, x: jnp.einsum("ebn,enm->ebm", x, w)), (3, 8, 6), (3, 5, 8), (1,)),
    "vmap over weights": Case(_loss(jax.vmap(lambda w, x: x @ w)), (3, 8, 6), (3, 5, 8), (1,)),
    "vmap over inputs": Case(_loss(lambda w, x: jax.vmap(lambda x: w.T @ x)(x)), (8, 6), (5, 8), (0,)),
    "jit": Case(_loss(jax.jit(lambda w, x: jax.jit(jnp.matmul)(x, w))), (8, 6), (5, 8), (0,)),
    "remat": Case(_loss(jax.checkpoint(lambda w, x: jnp.tanh(x @ w))), (8, 6), (5, 8), (0,)),
    "remat, dots saved": Case(
        _loss(jax.checkpoint(lambda w, x: jnp.tanh(x @ w), policy=jax.checkpoint_policies.dots_saveable)),
        (8, 6),
        (5, 8),
        (0,),
    ),
    "reshaped": Case(_loss(_heads), (8, 6), (5, 8), (0,)),
    "flattened inputs": Case(_loss(lambda w, x: x @ w.reshape(8, 6)), (2, 4, 6), (5, 8), (0, 1)),
    "scaled": Case(_loss(lambda w, x: x @ (-w * 0.5 / 3)), (8, 6), (5, 8), (0,)),
    "cast": Case(_loss(lambda w, x: x.astype(jnp.bfloat16) @ w.astype(jnp.bfloat16)), (8, 6), (5, 8), (0,)),
    "split": Case(_loss(_qkv), (8, 6), (5, 8), (0,)),
    "sliced": Case(_loss(lambda w, x: x @ w[:, 1:4] + x @ w[:, ::2]), (8, 6), (5, 8), (0,)),
    "broadcast": Case(_loss(lambda w, x: jnp.matmul(x, jnp.broadcast_to(w, (3, 8, 6)))), (8, 6), (3, 5, 8), (0,)),
    "two inputs": Case(_loss(lambda w, x: x @ w + jnp.cos(x) @ w), (8, 6), (5, 8), (0,)),
    "stacked, unrolled": Case(_loss(_unrolled), (3, 8, 8), (5, 8), (1,)),
    "stacked, indexed": Case(_loss(_indexed), (3, 8, 8), (5, 8), (1,)),
    "scan": Case(_loss(_layers()), (3, 8, 8), (5, 8), (1,), (0,)),
    "scan backwards": Case(_loss(_layers(reverse=True, unroll=3)), (3, 8, 8), (5, 8), (1,), (0,)),
    "scan of scans": Case(_loss(_nested), (2, 3, 8, 8), (5, 8), (2,), (0, 1)),
    "scan of remat": Case(
        _loss(lambda w, x: lax.scan(jax.checkpoint(lambda h, w: (jnp.tanh(h @ w), h)), x, w)[0]),
        (3, 8, 8),
        (5, 8),
        (1,),
        (0,),
    ),
    "scan and index": Case(_loss(_scanned_and_indexed), (3, 8, 8), (5, 8), (1,)),
    "loop constant": Case(
        _loss(lambda w, x: lax.scan(lambda h, _: (jnp.tanh(h @ w), None), x, None, length=3)[0]), (8, 8), (5, 8), (0,)
    ),
    "carried unchanged": Case(_loss(_carried), (8, 8), (5, 8), (0,)),
    "cond": Case(
        _loss(lambda w, x: lax.cond(x[0, 0] > 0, lambda: x @ w, lambda: jnp.sin(x) @ w)), (8, 6), (5, 8), (0,)
    ),
    "own vjp": Case(_loss(lambda w, x: _own_product(x, w)), (8, 6), (5, 8), (0,)),
    "own vjp in scan": Case(
        _loss(lambda w, x: lax.scan(lambda h, w: (jnp.tanh(_own_product(h, w)), None), x, w)[0]),
        (3, 8, 8),
        (5, 8),
        (1,),
        (0,),
    ),
    "own jvp": Case(_loss(lambda w, x: _own_tangent(x, w)), (8, 6), (5, 8), (0,)),
}


def arguments(case: Case, seed: int = 0):
    rng = np.random.default_rng(seed)
    draw = lambda shape: jnp.asarray(rng.normal(size=shape) * 0.5, jnp.float32)
    return {"w": draw(case.w), "b": draw(case.x[-1:])}, draw(case.x)
