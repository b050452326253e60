"""Chunked attention in any function, without touching it."""

from __future__ import annotations

from collections.abc import Callable

from jaxremat.attention.pattern import AttentionFinder
from jaxremat.base.compat import Jaxpr
from jaxremat.chunk.rewriting import Report, findings, inline_jits, rewritten


def rewrite(
    fun: Callable,
    *,
    query_chunk_size: int | None = None,
    key_chunk_size: int | None = None,
    target: str | None = None,
) -> Callable:
    """Returns `fun` with every softmax attention in it computed one tile of scores at a time.

    Found is what people write: scores from any einsum, scaled before or after, biased, masked by `where` with any
    constant or by an additive mask, soft-capped, in any dtype; `jax.nn.softmax` or its formula written out; grouped
    heads; `nn.MultiHeadDotProductAttention`, `jax.nn.dot_product_attention`; inside jit, scan, while, cond and
    checkpoint. Left alone, with the reason in the report: weights or scores that something else reads (returned,
    sown, dropped out), scores that fit in one tile.

    Values and derivatives are those of `fun` up to rounding: the scores' own equations run, only on tiles.

    Args:
      fun: any function of arrays.
      query_chunk_size, key_chunk_size: as in `dot_product_attention`.
      target: device that it is for, such as "h200"; None is the default backend's.

    Returns:
      The function, with the same signature, and a method `explain(*args)` that returns the `Report` of what is
      replaced, what is left, why, and where in the source it stands.
    """
    return rewritten(fun, AttentionFinder(query_chunk_size, key_chunk_size, target))


def find(jaxpr: Jaxpr) -> Report:
    """What `rewrite` would find in a traced program; each finding has `large_bytes`, the bytes of its scores."""
    return Report(findings(inline_jits(jaxpr), AttentionFinder()))
