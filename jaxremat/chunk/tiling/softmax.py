"""The streaming softmax: log-sum-exp over one axis, and the weighted mean of values, without the scores.

Rabe & Staats, "Self-attention does not need O(n^2) memory" (2021): scores are computed tile by tile, and a running
maximum, sum and weighted sum per row are rescaled as the maximum grows. Memory is one tile beside inputs and outputs.

Deviation: the paper differentiates the loop itself under `jax.checkpoint`, key chunk by key chunk. Here the derivative
is written down: with P = exp(S - lse) and dS the tangent of the scores,

    d lse = sum_k P dS          d out = sum_k P dS v + P dv - (d lse) out

which is again a sum over tiles, linear in the tangents. JAX transposes it into the backward pass, tile by tile, so
reverse mode, forward mode and higher orders all need one tile only, and scores are computed once more, not twice.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from jaxremat.base.dtypes import promoted
from jaxremat.chunk.tiling.tile_scan import linear_tile_scan
from jaxremat.chunk.tiling.tiles import Span, Tiling, Window


@dataclasses.dataclass(frozen=True)
class Scores:
    """How the tiles of a score array [*batch, *rows, keys] are computed; static and hashable.

    Attributes:
      tile: `tile(blocks, reads) -> scores [*sizes]`, a pure function of the operands' blocks and of where the tile
        starts; minus infinity takes an entry out.
      tiling: the cut of the score array; its last axis is the one that the softmax runs over.
      windows: one per operand.
      batch_rank: how many leading axes the values share.
      precision: of the product of weights and values.
      out_dtype: of that product.
    """

    tile: Callable[[Sequence[jax.Array], list[jax.Array]], jax.Array]
    tiling: Tiling
    windows: tuple[Window, ...]
    batch_rank: int = 0
    precision: lax.Precision | lax.DotAlgorithmPreset | None = None
    out_dtype: jnp.dtype | None = None

    @property
    def row_window(self) -> Window:
        return tuple(Span(i) for i in range(len(self.tiling.lengths) - 1))

    @property
    def value_window(self) -> Window:
        return (*(Span(i) for i in range(self.batch_rank)), Span(len(self.tiling.lengths) - 1), None)

    def of_tile(self, blocks: Sequence[jax.Array], place: jax.Array) -> jax.Array:
        """The scores of a tile, in float32 or better; keys that an earlier tile has read are taken out."""
        tiling, last = self.tiling, len(self.tiling.lengths) - 1
        reads = tiling.reads(place)
        scores = self.tile(blocks, reads)
        scores = scores.astype(promoted(scores.dtype, jnp.float32))
        if tiling.overlaps(last):
            scores = jnp.where(tiling.positions(reads, last) >= place[last], scores, -jnp.inf)
        return scores

    def mix(self, weights: jax.Array, value: jax.Array) -> jax.Array:
        """[*batch, *rows, keys] times [*batch, keys, depth], summed over keys in float32 or better."""
        batch = tuple(range(self.batch_rank))
        dims = (((self.batch_rank + 1,), (self.batch_rank,)), (batch, batch))
        wide = promoted(value.dtype, jnp.float32)
        rows = weights.shape[self.batch_rank : -1]
        weights = weights.astype(value.dtype).reshape(*value.shape[:-2], -1, weights.shape[-1])
        mixed = lax.dot_general(weights, value, dims, precision=self.precision, preferred_element_type=wide)
        return mixed.reshape(*value.shape[:-2], *rows, value.shape[-1])


def log_sum_exp(scores: Scores, operands: Sequence[jax.Array]) -> jax.Array:
    """log of the sum of exp(scores) over the last axis: [*batch, *rows]; minus infinity for a row without keys."""
    anchor, log_total, _ = _stream(scores, tuple(operands), None)
    return anchor + log_total


def softmax_mean(scores: Scores, operands: Sequence[jax.Array], value: jax.Array) -> tuple[jax.Array, jax.Array]:
    """softmax(scores) times value, and the log-sum-exp of the scores.

    Args:
      scores: [*batch, *rows, keys], as tiles.
      operands: the arrays that the tiles are computed from.
      value: [*batch, keys, depth].

    Returns:
      out [*batch, *rows, depth], zero where a row has no keys; lse [*batch, *rows].
    """
    anchor, log_total, out = _stream(scores, tuple(operands), value)
    return out, anchor + log_total


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _stream(scores: Scores, operands: tuple[jax.Array, ...], value: jax.Array | None) -> Any:
    """Returns (anchor, log_total, out): lse = anchor + log_total, kept apart because at an anchor of -1e30, which a row
    of masked scores has, the sum would lose log_total. The anchor is a constant to derivatives."""
    tiling, rows = scores.tiling, scores.row_window
    shape = tiling.padded[:-1]
    wide = _wide_dtype(scores, operands)

    def step(state: Any, place: Any) -> Any:
        reads = tiling.reads(place)
        tile = scores.of_tile([tiling.block(x, w, reads) for x, w in zip(operands, scores.windows)], place)
        at = tiling.starts(rows, place)
        peak, total = (lax.dynamic_slice(x, at, tiling.sizes[:-1], allow_negative_indices=False) for x in state[:2])
        new_peak = jnp.maximum(peak, tile.max(-1))
        anchor = _finite(new_peak)
        weights, kept = jnp.exp(tile - anchor[..., None]), jnp.exp(peak - anchor)
        new = [new_peak, total * kept + weights.sum(-1)]
        if value is not None:
            depth = value.shape[-1]
            mixed = lax.dynamic_slice(state[2], [*at, 0], (*tiling.sizes[:-1], depth), allow_negative_indices=False)
            value_block = tiling.block(value, scores.value_window, reads)
            new.append(mixed * kept[..., None] + scores.mix(weights, value_block).astype(wide))
        starts = (at, at, [*at, 0])
        state = [lax.dynamic_update_slice(*x, allow_negative_indices=False) for x in zip(state, new, starts)]
        return state, None

    state = [jnp.full(shape, -jnp.inf, wide), jnp.zeros(shape, wide)]
    if value is not None:
        state.append(jnp.zeros((*shape, value.shape[-1]), wide))
    (peak, total, *mixed), _ = lax.scan(step, state, tiling.places())
    anchor, log_total = tiling.trim(_finite(peak), rows), tiling.trim(jnp.log(total), rows)
    if value is None:
        return anchor, log_total, None
    out = mixed[0] / jnp.where(total == 0, 1, total)[..., None]
    return anchor, log_total, tiling.trim(out, (*rows, None)).astype(scores.out_dtype or value.dtype)


@functools.partial(_stream.defjvp, symbolic_zeros=True)
def _stream_jvp(scores: Scores, primals: Any, tangents: Any) -> Any:
    operands, value = primals
    d_operands, d_value = tangents
    anchor, log_total, out = _stream(scores, operands, value)
    moving = tuple(i for i, t in enumerate(d_operands) if not isinstance(t, SymbolicZero))
    if value is None or isinstance(d_value, SymbolicZero):
        d_value = None
    moved = [d_operands[i] for i in moving] + ([] if d_value is None else [d_value])
    windows = [scores.windows[i] for i in moving] + ([] if d_value is None else [scores.value_window])
    tiling, rows = scores.tiling, scores.row_window
    results = [jax.ShapeDtypeStruct(tiling.padded[:-1], anchor.dtype)]
    if value is not None:
        results.append(jax.ShapeDtypeStruct((*tiling.padded[:-1], value.shape[-1]), anchor.dtype))
    share = _TangentTile(scores, moving, operands, value, anchor, log_total)
    d_lse, *d_mixed = linear_tile_scan(tiling, share, moved, windows, results, [rows, (*rows, None)])
    d_lse = tiling.trim(d_lse, rows)
    still = jnp.zeros_like(anchor)
    if value is None:
        return (anchor, log_total, None), (still, d_lse, None)
    d_out = tiling.trim(d_mixed[0], (*rows, None)) - d_lse[..., None] * out.astype(anchor.dtype)
    return (anchor, log_total, out), (still, d_lse, d_out.astype(out.dtype))


@dataclasses.dataclass(frozen=True, eq=False)
class _TangentTile:
    """One tile's share of sum P dS and of sum P dS v + P dv; linear in the tangents' blocks.

    Attributes:
      moving: the operands that have a tangent; the value's, if it has one, comes after theirs.
      anchor, log_total: of every row; their sum is the log-sum-exp.
    """

    scores: Scores
    moving: tuple[int, ...]
    operands: tuple[jax.Array, ...]
    value: jax.Array | None
    anchor: jax.Array
    log_total: jax.Array

    def __call__(self, place: jax.Array, d_blocks: Sequence[jax.Array]) -> list[jax.Array]:
        reads = self.scores.tiling.reads(place)
        tile, d_tile = self._moved_scores(reads, place, d_blocks)
        anchor, log_total = (self._block(x, self.scores.row_window, reads) for x in (self.anchor, self.log_total))
        weights = jnp.exp(tile - anchor[..., None] - _finite(log_total)[..., None])
        pushed = weights * d_tile
        parts = [pushed.sum(-1)]
        if self.value is not None:
            mixed = self.scores.mix(pushed, self._block(self.value, self.scores.value_window, reads))
            if len(d_blocks) > len(self.moving):
                mixed += self.scores.mix(weights, d_blocks[-1].astype(self.value.dtype))
            parts.append(mixed)
        return parts

    def _moved_scores(self, reads: Any, place: Any, d_blocks: Any) -> tuple[jax.Array, jax.Array]:
        """The tile's scores and their tangent."""
        blocks = [self._block(x, w, reads) for x, w in zip(self.operands, self.scores.windows)]
        primals = [blocks[i] for i in self.moving]
        d_primals = [d.astype(p.dtype) for d, p in zip(d_blocks, primals)]

        def of(moved: Any) -> Any:
            every = dict(enumerate(blocks)) | dict(zip(self.moving, moved))
            return self.scores.of_tile(list(every.values()), place)

        return jax.jvp(of, (primals,), (d_primals,))

    def _block(self, array: jax.Array, window: Window, reads: Any) -> jax.Array:
        return self.scores.tiling.block(array, window, reads)


def _finite(x: jax.Array) -> jax.Array:
    """What to subtract; a row without keys, where it is minus infinity, subtracts nothing."""
    return jnp.where(jnp.isneginf(x), 0, x)


def _wide_dtype(scores: Scores, operands: Any) -> jnp.dtype:
    tiling = scores.tiling

    def tile(*operands: Any) -> Any:
        place = jnp.zeros(len(tiling.lengths), jnp.int32)
        reads = tiling.reads(place)
        return scores.of_tile([tiling.block(x, w, reads) for x, w in zip(operands, scores.windows)], place)

    return jax.eval_shape(tile, *operands).dtype
