"""Module paths of equations, as the name stacks of JAX carry them."""

from __future__ import annotations

import re

_TRANSFORMATIONS = re.compile(r"\b(?:jvp|transpose|vmap|jit|pjit|remat|checkpoint|shard_map|pmap)\(([^()]*)\)")
_MARKS = frozenset({"checkpoint", "rematted_computation", "remat", "while", "body", "closed_call", "core_call"})


def clean_path(stack: str) -> str:
    """A name stack without the marks that transformations leave: `transpose(jvp(GPT))/block_0` is `GPT/block_0`."""
    previous = None
    while stack != previous:
        previous, stack = stack, _TRANSFORMATIONS.sub(r"\1", stack)
    return "/".join(part for part in stack.split("/") if part and part not in _MARKS and "<" not in part)
