"""Softmax cross-entropy of a language model's head, without the logits."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxremat.backends.devices import resolve_target
from jaxremat.base.dtypes import promoted
from jaxremat.base.errors import ArgumentError
from jaxremat.base.shapes import Float, Integer
from jaxremat.chunk.tiling.softmax import Scores, log_sum_exp
from jaxremat.chunk.tiling.tiles import Span, attention_tiling


def softmax_cross_entropy(
    hidden: Float[jax.Array, "*tokens width"],
    embedding: Float[jax.Array, "width vocabulary"],
    labels: Integer[jax.Array, "*tokens"],
    *,
    bias: Float[jax.Array, " vocabulary"] | None = None,
    token_chunk_size: int | None = None,
    vocabulary_chunk_size: int | None = None,
) -> Float[jax.Array, "*tokens"]:
    """Computes -log softmax(hidden @ embedding + bias)[label] per token, one tile of logits at a time.

    Neither the forward nor the backward pass holds more logits than a tile; they are computed in float32, and once
    more in the backward pass. Exact to rounding, in every mode and order of differentiation.

    Args:
      hidden: [..., width].
      embedding: [width, vocabulary], such as a Dense kernel; the transpose of a table of embeddings.
      labels: integers [...] in [0, vocabulary).
      bias: [vocabulary], added to the logits.
      token_chunk_size, vocabulary_chunk_size: at most so many in a tile; None chooses at most 1024 and 4096.

    Returns:
      The loss of each token [...], in float32 (float64 for float64 inputs).

    Raises:
      ArgumentError: if shapes or dtypes do not fit.
    """
    width, vocabulary = embedding.shape
    if hidden.shape != (*labels.shape, width) or (bias is not None and bias.shape != (vocabulary,)):
        raise ArgumentError(
            f"hidden {hidden.shape}, embedding {embedding.shape}, labels {labels.shape} and bias "
            f"{None if bias is None else bias.shape} must be [..., width], [width, vocabulary], [...] and [vocabulary]"
        )
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ArgumentError(f"labels must be integers, not {labels.dtype}")
    wide = promoted(hidden.dtype, embedding.dtype, jnp.float32)
    tokens = hidden.reshape(-1, width)
    flat_labels = labels.reshape(-1)
    operands = [tokens, embedding] + ([] if bias is None else [bias])
    entries = resolve_target().backend.scores_per_tile
    scores = Scores(
        tile=_LogitTile(wide),
        tiling=attention_tiling((len(tokens), vocabulary), entries, token_chunk_size, vocabulary_chunk_size),
        windows=((Span(0), None), (None, Span(1)), (Span(1),))[: len(operands)],
    )
    chosen = jnp.sum(tokens.astype(wide) * embedding[:, flat_labels].T.astype(wide), -1)
    if bias is not None:
        chosen += bias[flat_labels].astype(wide)
    return (log_sum_exp(scores, operands) - chosen).reshape(labels.shape)


@dataclasses.dataclass(frozen=True)
class _LogitTile:
    dtype: jnp.dtype

    def __call__(self, blocks: Any, reads: Any) -> jax.Array:
        tokens, embedding, *bias = blocks
        logits = lax.dot(tokens, embedding, preferred_element_type=self.dtype)
        return logits + bias[0].astype(self.dtype)[None] if bias else logits
