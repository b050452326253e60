"""Module paths of equations, as the name stacks of JAX carry them."""

from __future__ import annotations

import re

_TRANSFORMATIONS = re.compile(r"\b(?:jvp|transpose|vmap|jit|pjit|remat|checkpoint|shard_map|pmap)\(([^()]*)\)")
_SCOPE = re.compile(r"@(\d+)@")
_MARKS = frozenset({"checkpoint", "rematted_computation", "remat", "while", "body", "closed_call", "core_call"})


def scope(number: int) -> str:
    """The name of a scope that says where an equation stems from, for analysis alone: nobody is shown it."""
    return f"@{number}@"


def number_of_scope(stack: str) -> int | None:
    """The number of the outermost such scope in a name stack."""
    found = _SCOPE.search(stack)
    return int(found[1]) if found else None


def clean_path(stack: str) -> str:
    """A name stack without the marks that transformations and analysis leave: `transpose(jvp(GPT))/block_0` is
    `GPT/block_0`."""
    previous = None
    while stack != previous:
        previous, stack = stack, _TRANSFORMATIONS.sub(r"\1", stack)
    return "/".join(part for part in stack.split("/") if _is_named_by_people(part))


def _is_named_by_people(part: str) -> bool:
    return bool(part) and part not in _MARKS and "<" not in part and not _SCOPE.fullmatch(part)
