"""Chunked attention (Rabe & Staats 2021) in any function, without touching it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxremat.attention.pattern import AttentionFinder
from jaxremat.backends.devices import resolve_target
from jaxremat.base.compat import Jaxpr
from jaxremat.chunk.rewriting import program
from jaxremat.chunk.rewriting.finding import Findings


def rewrite(
    fun: Callable[..., Any],
    *,
    query_chunk_size: int | None = None,
    key_chunk_size: int | None = None,
    target: str | None = None,
) -> Callable[..., Any]:
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
      target: device whose tiles to use where no size is given, such as "h200"; None is the default backend's.

    Returns:
      The function, with the same signature, and a method `explain(*args)` that returns the `Findings` of what is
      replaced, what is left, why, and where in the source it stands.

    Raises:
      ArgumentError: for an unknown target.
    """
    entries = resolve_target(target).backend.scores_per_tile
    return program.rewritten(fun, AttentionFinder(entries, query_chunk_size, key_chunk_size))


def find(jaxpr: Jaxpr, target: str | None = None) -> Findings:
    """What `rewrite` would find in a traced program.

    Args:
      jaxpr: the program, as `jax.make_jaxpr(fun)(*args)` gives it.
      target: device whose backend sets the size of a tile; None is the default backend's.

    Returns:
      The `Findings`; each finding has `large_bytes`, the bytes of its scores.

    Raises:
      ArgumentError: for an unknown target.
    """
    return program.find(jaxpr, AttentionFinder(resolve_target(target).backend.scores_per_tile))
