"""Where a value comes from, as people know it: module path, operation and source line."""

from __future__ import annotations

import dataclasses
import re
import sysconfig
from pathlib import Path

from jaxremat.base import compat
from jaxremat.base.compat import Eqn

_TRANSFORMATIONS = re.compile(r"\b(?:jvp|transpose|vmap|jit|pjit|remat|checkpoint|shard_map|pmap)\(([^()]*)\)")
_MARKS = frozenset({"checkpoint", "rematted_computation", "remat", "while", "body", "closed_call", "core_call"})
_LIBRARIES = tuple({sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), sysconfig.get_path("stdlib")})
_OWN = str(Path(__file__).resolve().parents[1])


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where an equation comes from.

    Attributes:
      path: module path such as `GPT/block_3/query`; empty where the program names no modules.
      operation: the primitive, after the class of the module or the formula that called it (`Dense dot_general`).
      source: `model.py:21` of the user's own line, or empty.
    """

    path: str
    operation: str
    source: str


def origin_of(eqn: Eqn) -> Origin:
    """Reads an equation's name stack and traceback."""
    *modules, last = clean_path(compat.name_stack(eqn)).split("/")
    formula = last if "->" in last else ""
    frames = compat.source_frames(eqn)
    caller = formula or _library_class(frames)
    operation = f"{caller} {eqn.primitive.name}".strip()
    return Origin("/".join(modules if formula else [*modules, last]), operation, _user_line(frames))


def clean_path(stack: str) -> str:
    """A name stack without the marks that transformations leave: `transpose(jvp(GPT))/block_0` is `GPT/block_0`."""
    previous = None
    while stack != previous:
        previous, stack = stack, _TRANSFORMATIONS.sub(r"\1", stack)
    return "/".join(part for part in stack.split("/") if part and part not in _MARKS and "<" not in part)


def _is_library(file: str) -> bool:
    return "site-packages" in file or "dist-packages" in file or file.startswith((*_LIBRARIES, _OWN, "<"))


def _library_class(frames: list[tuple[str, int, str]]) -> str:
    """The class whose method made the equation, where that is a library's: `Dense` of `Dense.__call__`."""
    for file, _, function in frames:
        if not _is_library(file):
            break
        head, _, method = function.partition(".")
        if method and head[:1].isupper():
            return head
    return ""


def _user_line(frames: list[tuple[str, int, str]]) -> str:
    own = [(file, line) for file, line, _ in frames if not _is_library(file)]
    if not own:
        return ""
    file, line = own[0]
    return f"{Path(file).name}:{line}"
