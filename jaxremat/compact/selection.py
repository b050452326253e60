"""Which weights to compress, and how wide their projections are."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import jax
import jax.numpy as jnp

from jaxremat.base.errors import ArgumentError

_LEFT_FULL = re.compile(
    r"embed|^(wte|wpe|position|pos|lm_head|head|heads|logits|readout|classifier|decoder)$|norm"
    r"|^(out|out_proj|o_proj|wo|attn_out|attention_out|to_out)$"
)


@dataclasses.dataclass(frozen=True)
class Compression:
    """How one parameter is compressed: static, part of the state's tree structure.

    Attributes:
      leaf: position among the flattened parameters.
      path: such as `params/block_0/up/kernel`.
      shape: of the full weight.
      in_axes: the axes that its products contract, ascending.
      rank: width of the projection.
    """

    leaf: int
    path: str
    shape: tuple[int, ...]
    in_axes: tuple[int, ...]
    rank: int


def default_select(path: str, leaf: Any) -> bool:
    """The choice of CompAct's authors, by name: every matrix but embeddings, output heads and attention outputs.

    The input of an attention's output projection is the attention's own output, which fused attention keeps anyway.

    Args:
      path: names from the root to the parameter, joined by `/`.
      leaf: the parameter, or its shape and dtype.

    Returns:
      True for a floating-point array of two or more dimensions none of whose path's parts is such a name
      (`embedding`, `wte`, `head`, `logits`, `out`, `o_proj`, `wo`, ...).
    """
    return is_matrix(leaf) and not any(_LEFT_FULL.search(part.lower()) for part in re.split(r"[/.]", path))


def is_matrix(leaf: Any) -> bool:
    return len(leaf.shape) >= 2 and jnp.issubdtype(leaf.dtype, jnp.floating)


def named_leaves(params: Any) -> list[tuple[str, Any]]:
    """(path, leaf) of every parameter, in the order of the flattened tree."""
    flat, _ = jax.tree_util.tree_flatten_with_path(params)
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in flat]


def check_rank(rank: int | float) -> int | float:
    """Refuses a rank that is neither a positive integer nor a fraction in (0, 1]."""
    whole = isinstance(rank, int) and not isinstance(rank, bool) and rank >= 1
    if not whole and not (isinstance(rank, float) and 0 < rank <= 1):
        raise ArgumentError(f"rank={rank!r} is neither a positive integer nor a fraction in (0, 1] of the input width")
    return rank


def rank_of(rank: int | float, shape: tuple[int, ...], in_axes: tuple[int, ...]) -> int:
    """The width of the projection for one weight's input width."""
    width = math.prod(shape[a] for a in in_axes)
    return rank if isinstance(rank, int) else max(1, round(rank * width))


def make_compression(leaf: int, path: str, weight: Any, in_axes: tuple[int, ...], rank: int | float) -> Compression:
    """Resolves a rank for one weight; raises ArgumentError when it is wider than the weight's input."""
    shape = tuple(weight.shape)
    own, width = rank_of(rank, shape, in_axes), math.prod(shape[a] for a in in_axes)
    if own > width:
        raise ArgumentError(
            f"rank={rank} is more than the input width {width} of {path} {shape}: choose a rank of at most {width}, "
            "or a fraction, or leave this parameter out of `select`"
        )
    return Compression(leaf, path, shape, in_axes, own)
