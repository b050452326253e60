"""Chunked loss heads in any function, without touching it."""

from __future__ import annotations

from collections.abc import Callable

from jaxremat.base.compat import Jaxpr
from jaxremat.chunk.loss_head import LossHeadFinder
from jaxremat.chunk.rewriting import Report, findings, inline_jits, rewritten


def rewrite(fun: Callable, *, token_chunk_size: int | None = None, target: str | None = None) -> Callable:
    """Returns `fun` with every loss head computed a chunk of tokens at a time, so that its logits never all exist.

    A loss head is a product with a vocabulary axis, followed by a softmax or log-sum-exp over it, of which only values
    per token are read: cross-entropy from optax or written out, with labels or distributions, with an argmax for
    accuracy or a z-loss beside it. Values and derivatives are those of `fun` up to rounding.

    Args:
      fun: any function of arrays.
      token_chunk_size: at most so many tokens at a time; None chooses from the vocabulary and the target.
      target: device that it is for, such as "h200"; None is the default backend's.

    Returns:
      The function, with the same signature, and a method `explain(*args)` that returns the `Report` of what is
      replaced, what is left, why, and where in the source it stands.
    """
    return rewritten(fun, LossHeadFinder(token_chunk_size, target))


def find(jaxpr: Jaxpr) -> Report:
    """What `rewrite` would find in a traced program; each finding has `large_bytes`, the bytes of its logits."""
    return Report(findings(inline_jits(jaxpr), LossHeadFinder()))
