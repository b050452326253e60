"""Where a value comes from, as people know it: module path, operation, name, and source line."""

from __future__ import annotations

import dataclasses
import itertools
import re
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxremat.base import compat
from jaxremat.base.compat import Eqn
from jaxremat.report.naming import is_activation, label_of
from jaxremat.trace.joint import Joint
from jaxremat.trace.paths import clean_path

_LIBRARIES = tuple({sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), sysconfig.get_path("stdlib")})
_OWN = str(Path(__file__).resolve().parents[1])
_JAX = re.compile(r"[/\\]jax[/\\]")
_SPOKEN_OF = re.compile(r"[/\\]jax[/\\](?:_src[/\\])?(?:numpy|nn|lax|scipy|ops|image|random|cudnn)\b")
"""Files whose functions people call; the rest of JAX traces and transforms."""
_WRAPPERS = re.compile(r"call__|op|meth|wrapper|bind.*|operator_.*|forward_.*|deferring_.*|<.*>")
"""Names, without leading underscores, of what stands there between a call and what was called."""

Frame = tuple[str, int, str]
"""(file, line, qualified function)."""


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where an equation comes from.

    Attributes:
      path: module path such as `GPT/block_3/query`; empty where the program names no modules.
      operation: the primitive, after the class of the module or the formula that called it (`Dense dot_general`).
      source: `model.py:21` of the user's own line, or empty.
      label: what people call the result: `gelu`, `softmax weights`, `dropout mask`, `LayerNorm`.
    """

    path: str
    operation: str
    source: str
    label: str = ""


def origin_of(eqn: Eqn, rules: Mapping[object, str] | None = None) -> Origin:
    """Reads an equation's name stack and traceback.

    Args:
      eqn: the equation.
      rules: names of custom derivative rules by the traceback of their call; see `rules_in`.
    """
    *modules, last = clean_path(compat.name_stack(eqn)).split("/")
    formula = last if "->" in last else ""
    path = "/".join(modules if formula else [*modules, last])
    frames = compat.call_frames(eqn)
    library = _library_function(frames)
    caller = formula or (library if library[:1].isupper() else "")
    rule = (rules or {}).get(compat.traceback_of(eqn), "")
    label = formula or label_of(eqn, rule or _jax_function(frames), library, path)
    return Origin(path, f"{caller} {eqn.primitive.name}".strip(), _user_line(frames), label)


def origins_of(joint: Joint) -> tuple[Origin, ...]:
    """One per equation of a program."""
    rules = rules_in(joint.eqns)
    return tuple(origin_of(eqn, rules) for eqn in joint.eqns)


def rules_in(eqns: Sequence[Eqn]) -> dict[object, str]:
    """Name of each function with a derivative rule of its own, by the traceback of its call: what the rule adds to the
    program (relu's mask, say) carries the same one."""
    calls = ((compat.traceback_of(eqn), compat.rule_name(eqn)) for eqn in eqns)
    return {traceback: name for traceback, name in calls if name and traceback is not None}


def is_transposed(eqn: Eqn) -> bool:
    """Whether an equation belongs to a backward, by its name stack."""
    return "transpose(" in compat.name_stack(eqn)


def _is_library(file: str) -> bool:
    return "site-packages" in file or "dist-packages" in file or file.startswith((*_LIBRARIES, _OWN, "<"))


def _jax_function(frames: Sequence[Frame]) -> str:
    """The function of JAX that the program called, behind operators, methods and wrappers: `gelu`, `mean`; or empty."""
    inside = itertools.takewhile(lambda frame: _JAX.search(frame[0]), frames)
    spoken_of = (function for file, _, function in inside if _SPOKEN_OF.search(file))
    names = [function.rpartition(".")[2].lstrip("_") for function in spoken_of]
    activations = [name for name in names if is_activation(name)]
    telling = [name for name in names if not _WRAPPERS.fullmatch(name)]
    return (activations or telling or [""])[-1]


def _library_function(frames: Sequence[Frame]) -> str:
    """The class whose method made the equation (`Dense` of `Dense.__call__`), or else the function; where that is a
    library's."""
    outside = [(file, function) for file, _, function in frames if not _JAX.search(file)]
    first = ""
    for file, function in outside:
        if not _is_library(file) or file.startswith(_OWN):
            break
        head, _, method = function.lstrip("_").partition(".")
        if method and head[:1].isupper():
            return head
        first = first or head
    return first


def _user_line(frames: Sequence[Frame]) -> str:
    own = [(file, line) for file, line, _ in frames if not _is_library(file)]
    if not own:
        return ""
    file, line = own[0]
    return f"{Path(file).name}:{line}"
