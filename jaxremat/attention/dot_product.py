"""`jax.nn.dot_product_attention`, in memory that does not grow with the product of the lengths."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jaxremat.backends.devices import resolve_target
from jaxremat.base.dtypes import promoted
from jaxremat.base.errors import ArgumentError
from jaxremat.base.shapes import Bool, Float, Integer
from jaxremat.chunk.tiling.softmax import Scores, softmax_mean
from jaxremat.chunk.tiling.tiles import Span, Tiling, Window, attention_tiling

# With operands of 16 bits and a result of 32, the default would differentiate in mixed precision (jax issue 24047).
_PRECISION = {jnp.dtype(jnp.bfloat16): lax.DotAlgorithmPreset.BF16_BF16_F32}


def dot_product_attention(
    query: Float[ArrayLike, "*batch queries heads depth"],
    key: Float[ArrayLike, "*batch keys key_heads depth"],
    value: Float[ArrayLike, "*batch keys key_heads depth"],
    bias: Float[ArrayLike, ...] | None = None,
    mask: Bool[ArrayLike, ...] | None = None,
    *,
    scale: float | None = None,
    is_causal: bool = False,
    query_seq_lengths: Integer[ArrayLike, " _"] | None = None,
    key_value_seq_lengths: Integer[ArrayLike, " _"] | None = None,
    local_window_size: int | tuple[int, int] | None = None,
    implementation: str | None = None,
    return_residual: bool = False,
    query_chunk_size: int | None = None,
    key_chunk_size: int | None = None,
) -> Any:
    """Computes what `jax.nn.dot_product_attention` computes, one tile of scores at a time.

    Values and derivatives of every order and mode agree with it up to rounding. Masks and biases are read where they
    lie, never broadcast; tiles outside a causal or local window cost nothing; a row whose keys are all masked gives
    the mean of the values, as there. Memory beside inputs, outputs and gradients: one tile of scores, and one float32
    copy of what is differentiated (Rabe & Staats 2021; see `jaxremat.chunk.tiling.softmax`).

    Args:
      query: [batch, queries, heads, depth], or without batch.
      key, value: [batch, keys, key heads, depth]; the number of heads is a multiple of the number of key heads.
      bias: added to the scores; broadcastable to [batch, heads, queries, keys].
      mask: bool, True takes part; broadcastable to [batch, heads, queries, keys].
      scale: of the scores; 1/sqrt(depth) if None.
      is_causal: key j takes part for query i where j <= i.
      query_seq_lengths, key_value_seq_lengths: int32 [batch]; what lies beyond is padding.
      local_window_size: (left, right), or one number for both: keys i - left to i + right take part for query i.
      implementation: None or "xla"; both are this one.
      return_residual: also return the log-sum-exp of the scores [batch, queries, heads], without a gradient.
      query_chunk_size, key_chunk_size: at most so many queries and keys in a tile; None chooses from the lengths (at
        most 1024 and 4096, and 2^20 scores in a tile on the CPU, 2^22 elsewhere). Heads and batch entries join a tile
        as long as it is smaller than that.

    Returns:
      [batch, queries, heads, depth] in the dtype of the inputs, or without batch; with `return_residual` a pair.

    Raises:
      ArgumentError: if a shape, a dtype or an option is not one of the above.
    """
    if implementation not in (None, "xla"):
        raise ArgumentError(f"implementation={implementation!r}: chunked attention is plain XLA; pass None or 'xla'")
    inputs = _Inputs.of(
        query=query,
        key=key,
        value=value,
        bias=bias,
        mask=mask,
        query_lengths=query_seq_lengths,
        key_lengths=key_value_seq_lengths,
    )
    if isinstance(local_window_size, int):
        local_window_size = (local_window_size, local_window_size)
    band = _band(is_causal, local_window_size)
    if scale is None:
        scale = 1 / math.sqrt(inputs.query.shape[-1])
    elif isinstance(scale, jax.Array):
        inputs, scale = dataclasses.replace(inputs, query=inputs.query * scale.astype(inputs.query.dtype)), 1.0
    operands, windows = inputs.operands()
    entries = resolve_target().backend.scores_per_tile
    tiling = attention_tiling(inputs.lengths, entries, query_chunk_size, key_chunk_size, band)
    tile = _ScoreTile(tuple(operands), tiling, float(scale))
    scores = Scores(
        tile=tile,
        tiling=tiling,
        windows=tuple(windows.values()),
        batch_rank=2,
        precision=_PRECISION.get(inputs.value.dtype),
    )
    out, lse = softmax_mean(scores, list(operands.values()), inputs.value)
    if inputs.may_have_empty_rows or local_window_size is not None:
        out, lse = _fill_empty_rows(out, lse, inputs.value)
    if inputs.query_lengths is not None:
        rows = jnp.arange(out.shape[3], dtype=jnp.int32)[None, None, None] < inputs.query_lengths[:, None, None, None]
        out = jnp.where(rows[..., None], out, 0)
    shape = jnp.shape(query)
    out = jnp.moveaxis(out, 3, 1).reshape(shape)
    if not return_residual:
        return out
    residual = jnp.moveaxis(lse, 3, 1).reshape(shape[:-1]).astype(inputs.value.dtype)
    return out, lax.stop_gradient(residual)


@dataclasses.dataclass(frozen=True, eq=False)
class _Inputs:
    """The arguments as [batch, key heads, groups, queries, keys] sees them."""

    query: jax.Array  # [B, K, G, T, H]
    key: jax.Array  # [B, K, S, H]
    value: jax.Array  # [B, K, S, H]
    bias: jax.Array | None  # [B or 1, K or 1, G or 1, T or 1, S or 1]
    mask: jax.Array | None
    query_lengths: jax.Array | None  # [B]
    key_lengths: jax.Array | None  # [B]

    @classmethod
    def of(
        cls, *, query: Any, key: Any, value: Any, bias: Any, mask: Any, query_lengths: Any, key_lengths: Any
    ) -> _Inputs:
        query, key, value = (_with_rank_4(x) for x in (query, key, value))
        batch, keys, key_heads, depth = key.shape
        if value.shape != key.shape or query.shape[::3] != (batch, depth) or query.shape[2] % key_heads:
            raise ArgumentError(
                f"query {query.shape}, key {key.shape} and value {value.shape} must be [batch, queries, heads, depth], "
                "[batch, keys, key heads, depth] twice, with heads a multiple of key heads"
            )
        if not query.dtype == key.dtype == value.dtype:
            raise ArgumentError(f"query, key and value must share a dtype: {query.dtype}, {key.dtype}, {value.dtype}")
        groups = query.shape[2] // key_heads
        box = (batch, query.shape[2], query.shape[1], keys)
        group = functools.partial(_grouped, key_heads=key_heads, groups=groups, box=box)
        if mask is not None and not jnp.issubdtype(jnp.result_type(mask), jnp.bool_):
            raise ArgumentError(f"mask must be bool, not {jnp.result_type(mask)}; an additive mask is a bias")
        return cls(
            query=jnp.moveaxis(query.reshape(batch, -1, key_heads, groups, depth), 1, 3),
            key=jnp.moveaxis(key, 1, 2),
            value=jnp.moveaxis(value, 1, 2),
            bias=group("bias", bias),
            mask=group("mask", mask),
            query_lengths=_per_batch("query_seq_lengths", query_lengths, batch),
            key_lengths=_per_batch("key_value_seq_lengths", key_lengths, batch),
        )

    @property
    def lengths(self) -> tuple[int, ...]:
        return (*self.query.shape[:4], self.key.shape[2])

    @property
    def may_have_empty_rows(self) -> bool:
        return any(x is not None for x in (self.mask, self.query_lengths, self.key_lengths))

    def operands(self) -> tuple[dict[str, jax.Array], dict[str, Window]]:
        """What score tiles are computed from, and how each array follows the score array."""
        batch, key_head, group, query, key = (Span(i) for i in range(5))
        windows: dict[str, Window] = {
            "query": (batch, key_head, group, query, None),
            "key": (batch, key_head, key, None),
            "query_lengths": (batch,),
            "key_lengths": (batch,),
        }
        arrays = {}
        for name in ("query", "key", "bias", "mask", "query_lengths", "key_lengths"):
            array = getattr(self, name)
            if array is not None:
                arrays[name] = array
                windows.setdefault(name, tuple(None if n == 1 else Span(i) for i, n in enumerate(array.shape)))
        return arrays, {name: windows[name] for name in arrays}


@dataclasses.dataclass(frozen=True)
class _ScoreTile:
    """Scores of one tile [batch, key heads, groups, queries, keys], from the blocks of the named operands."""

    names: tuple[str, ...]
    tiling: Tiling
    scale: float

    def __call__(self, blocks: Any, reads: Any) -> jax.Array:
        named = dict(zip(self.names, blocks))
        query, key = named["query"], named["key"]
        scores = lax.dot_general(
            query.reshape(*query.shape[:2], -1, query.shape[-1]),
            key,
            (((3,), (3,)), ((0, 1), (0, 1))),
            precision=_PRECISION.get(query.dtype),
            preferred_element_type=promoted(query.dtype, jnp.float32),
        )
        scores = scores.reshape(*query.shape[:4], -1) * np.asarray(self.scale, scores.dtype)
        if "bias" in named:
            wide = promoted(scores.dtype, named["bias"].dtype)
            scores = (scores.astype(wide) + named["bias"].astype(wide)).astype(scores.dtype)
        for mask in self._masks(named, reads):
            scores = jnp.where(mask, scores, -jnp.inf)
        return scores

    def _masks(self, named: Any, reads: Any) -> Iterator[Any]:
        if "mask" in named:
            yield named["mask"]
        query = self.tiling.positions(reads, 3)[None, None, None, :, None]
        key = self.tiling.positions(reads, 4)[None, None, None, None]
        left, right = self.tiling.band
        if right is not None:
            yield key - query <= right
        if left is not None:
            yield query - key <= left
        for name, position in (("query_lengths", query), ("key_lengths", key)):
            if name in named:
                yield position < named[name][:, None, None, None, None]


def _band(is_causal: bool, window: tuple[int, int] | None) -> tuple[int | None, int | None]:
    """(left, right) bounds of key - query; None is no bound."""
    left, right = window if window is not None else (None, None)
    if is_causal:
        right = 0 if right is None else min(0, right)
    return left, right


def _fill_empty_rows(out: jax.Array, lse: jax.Array, value: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Rows without a key get the mean of the values, and the log-sum-exp of equal scores far below all others."""
    empty = jnp.isneginf(lse)
    mean = value.astype(lse.dtype).mean(2)[:, :, None, None]
    far_below = np.asarray(-0.7 * float(jnp.finfo(lse.dtype).max), lse.dtype)
    return jnp.where(empty[..., None], mean.astype(out.dtype), out), jnp.where(empty, far_below, lse)


def _with_rank_4(x: Any) -> jax.Array:
    x = jnp.asarray(x)
    if x.ndim not in (3, 4):
        raise ArgumentError(f"expected [batch, length, heads, depth] or [length, heads, depth], got shape {x.shape}")
    return x if x.ndim == 4 else x[None]


def _grouped(name: str, x: Any, *, key_heads: int, groups: int, box: tuple[int, ...]) -> Any:
    if x is None:
        return None
    x = jnp.asarray(x)
    x = x.reshape((1,) * (4 - x.ndim) + x.shape)
    if x.ndim != 4 or any(n not in (1, full) for n, full in zip(x.shape, box)):
        raise ArgumentError(f"{name} of shape {x.shape} does not broadcast to [batch, heads, queries, keys] = {box}")
    heads = (1, 1) if x.shape[1] == 1 else (key_heads, groups)
    return x.reshape(x.shape[0], *heads, *x.shape[2:])


def _per_batch(name: str, x: Any, batch: int) -> Any:
    if x is None:
        return None
    x = jnp.asarray(x)
    if x.shape != (batch,) or not jnp.issubdtype(x.dtype, jnp.integer):
        raise ArgumentError(f"{name} must be an integer array of shape ({batch},), got {x.dtype} {x.shape}")
    return x.astype(jnp.int32)
