"""Whether arguments and programs are the planned ones; if not, where they differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, Protocol

import jax

from jaxremat.base.errors import PlanMismatchError
from jaxremat.trace.arguments import Call, call_of
from jaxremat.trace.fingerprint import describe
from jaxremat.trace.primal import Primal


class HasSignature(Protocol):
    """A decision of any version."""

    @property
    def fingerprint(self) -> str: ...
    @property
    def signature(self) -> tuple[str, ...]: ...
    @property
    def argnums(self) -> int | tuple[int, ...]: ...


def signature_of(args: Sequence[Any]) -> tuple[str, ...]:
    """Shape and dtype of every leaf, with its path: `0/params/w float32[8,8]`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tuple(args))
    return tuple(f"{jax.tree_util.keystr(path, simple=True, separator='/')} {_describe(leaf)}" for path, leaf in leaves)


def planned_call(decision: HasSignature, args: Sequence[Any], kwargs: Mapping[Any, Any]) -> Call:
    """The call of a planned function, whose arrays are as they were planned.

    Raises:
      PlanMismatchError: where they differ in number, shape or dtype.
    """
    calls = [call_of(args, kwargs, decision.argnums, numbers) for numbers in (True, False)]
    fitting = [call for call in calls if signature_of(call.arrays) == decision.signature]
    return fitting[0] if fitting else _refuse(decision, signature_of(calls[0].arrays))


def _refuse(decision: HasSignature, given: Sequence[str]) -> NoReturn:
    differences = [f"planned {a}, given {b}" for a, b in zip(decision.signature, given) if a != b]
    if len(given) != len(decision.signature):
        differences.append(f"planned {len(decision.signature)} arrays, given {len(given)}")
    raise PlanMismatchError(
        f"the arguments differ from the planned ones in {len(differences)} places: {'; '.join(differences[:4])}."
        " Plan again for these shapes, or use @jaxremat.remat, which plans once per signature. A number or a flag that"
        " was static in the plan is to be one here, too: under jax.jit, with static_argnums."
    )


def check_program(decision: HasSignature, primal: Primal, planned: Sequence[str]) -> None:
    """Raises PlanMismatchError, with the first difference, where a function traces to another program.

    Args:
      decision: what was decided for the planned program.
      primal: the program of the given function.
      planned: the listing of the planned one, as `describe` makes it; empty where it is not at hand.
    """
    if primal.fingerprint == decision.fingerprint:
        return
    given = describe(primal.jaxpr)
    first = next((i for i, (a, b) in enumerate(zip(planned, given)) if a != b), min(len(planned), len(given)))
    if first == len(planned) == len(given):
        raise PlanMismatchError("the same program, but other arguments are differentiated. Plan again.")
    raise PlanMismatchError(
        f"the function traces to another program than the one that was planned: they part at line {first + 1} of"
        f" {len(planned)} (planned) and {len(given)} (given). Planned: {_line(planned, first)}. Given:"
        f" {_line(given, first)}. Plan again."
    )


def _line(lines: Sequence[str], index: int) -> str:
    return lines[index][:160] if index < len(lines) else "the end"


def _describe(leaf: Any) -> str:
    aval = leaf if isinstance(leaf, jax.ShapeDtypeStruct) else jax.typeof(leaf)
    return f"{aval.dtype}[{','.join(map(str, aval.shape))}]"
