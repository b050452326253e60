"""Chunked loss heads in any function, without touching it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxremat.backends.devices import resolve_target
from jaxremat.base.compat import Jaxpr
from jaxremat.chunk.rewriting import program
from jaxremat.chunk.rewriting.finding import Findings
from jaxremat.chunk.rewriting.loss_head import LossHeadFinder

_TILES = 4
"""Tiles of attention scores in a chunk of logits. Each chunk reads the vocabulary's weights, and multiplies as fast as
it reads them if it has so many tokens as a device has operations per byte: 206 of bfloat16 on an H200. One tile of
GPT-2's vocabulary is 83 tokens, four are 334."""


def rewrite(
    fun: Callable[..., Any], *, token_chunk_size: int | None = None, target: str | None = None
) -> Callable[..., Any]:
    """Returns `fun` with every loss head computed a chunk of tokens at a time, so that its logits never all exist.

    A loss head is a product with a vocabulary axis, followed by a softmax or log-sum-exp over it, of which only values
    per token are read: cross-entropy from optax or written out, with labels or distributions, with an argmax for
    accuracy or a z-loss beside it. Values and derivatives are those of `fun` up to rounding.

    Args:
      fun: any function of arrays.
      token_chunk_size: at most so many tokens at a time; None chooses from the vocabulary.
      target: device whose tiles to use where no size is given, such as "h200"; None is the default backend's.

    Returns:
      The function, with the same signature, and a method `explain(*args)` that returns the `Findings` of what is
      replaced, what is left, why, and where in the source it stands.

    Raises:
      ArgumentError: for an unknown target.
    """
    return program.rewritten(fun, LossHeadFinder(_entries(target), token_chunk_size))


def find(jaxpr: Jaxpr, target: str | None = None) -> Findings:
    """What `rewrite` would find in a traced program.

    Args:
      jaxpr: the program, as `jax.make_jaxpr(fun)(*args)` gives it.
      target: device whose backend sets the size of a tile; None is the default backend's.

    Returns:
      The `Findings`; each finding has `large_bytes`, the bytes of its logits.

    Raises:
      ArgumentError: for an unknown target.
    """
    return program.find(jaxpr, LossHeadFinder(_entries(target)))


def _entries(target: str | None) -> int:
    return _TILES * resolve_target(target).backend.scores_per_tile
