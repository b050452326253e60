"""What was asked for, checked once."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax

from jaxremat.backends.devices import Device, resolve_target
from jaxremat.base import compat
from jaxremat.base.budget import Budget, format_bytes, parse_budget
from jaxremat.base.errors import ArgumentError
from jaxremat.base.near_miss import did_you_mean
from jaxremat.planner.decision import FORMS
from jaxremat.show.units import count_of
from jaxremat.solvers.base import Solver
from jaxremat.solvers.registry import solver_named
from jaxremat.trace.arguments import arrays_only, checked_argnums
from jaxremat.trace.calls import called
from jaxremat.trace.primal import Primal, read_primal

VERIFICATIONS = ("compile", "replay")
PERMISSIONS = ("chunk", "narrow", "offload", "project")
"""What may be allowed because it is not free of consequences: "chunk" changes values up to rounding, "narrow" rounds
what waits for the backward, "offload" takes memory of the host, "project" estimates gradients of weights."""


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """What was asked for, the budget aside; checked.

    Attributes:
      fun, args: a function of trees of arrays, and those; everything else that the user's function takes is bound.
      argnums, has_aux: what is differentiated, as in `jaxremat.plan`.
      solver: an instance.
      device: what to plan for.
      emit: one of `FORMS`.
      verify: one of `VERIFICATIONS`.
      seed: for solvers that draw random numbers.
      allow: of `PERMISSIONS`.
      host_budget_bytes: the most that may wait on the host; None for any amount.
      is_loss: whether `jax.grad` will be asked of the function; otherwise it is a part of one.
      refuses: whether a budget that nothing fits in is an error; otherwise the smallest plan is made, with a warning.
    """

    fun: Callable[..., Any]
    args: tuple[Any, ...]
    argnums: int | tuple[int, ...]
    has_aux: bool
    solver: Solver
    device: Device
    emit: str
    verify: str
    seed: int
    allow: frozenset[str]
    host_budget_bytes: int | None = None
    is_loss: bool = True
    refuses: bool = True

    @property
    def primal(self) -> Primal:
        """The function's program, traced once."""
        return self._traced[0]

    @property
    def trace_seconds(self) -> float:
        """Wall time of tracing it."""
        return self._traced[1]

    @functools.cached_property
    def _traced(self) -> tuple[Primal, float]:
        start = time.perf_counter()
        primal = read_primal(self.fun, self.args, self.argnums, self.has_aux)
        return primal, time.perf_counter() - start


def checked_request(
    fun: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] = types.MappingProxyType({}),
    *,
    argnums: int | Sequence[int],
    has_aux: bool,
    solver: str | Solver | type[Solver],
    target: str | None,
    emit: str,
    verify: str,
    seed: int,
    allow: Sequence[str] = (),
    host_budget: int | str | None = None,
) -> Request:
    """What was asked for, the budget aside, in the words of `plan`, whose defaults stand there.

    Raises:
      ArgumentError: where one cannot be understood.
    """
    require_function(fun)
    _require_on_device((args, dict(kwargs)), resolve_target(target))
    positions = checked_argnums(argnums, len(args))
    call = called(fun, args, kwargs, positions)
    return Request(
        arrays_only(call.bind(fun)), call.arrays, positions, has_aux, solver_named(solver), resolve_target(target),
        require_one_of("emit", emit, FORMS), require_one_of("verify", verify, VERIFICATIONS), seed, permissions(allow),
        host_budget_bytes(host_budget, allow),
    )  # fmt: skip


def require_function(fun: Any) -> None:
    """Raises ArgumentError for what cannot be called."""
    if not callable(fun):
        raise ArgumentError(
            f"the first argument has to be a function, not {type(fun).__name__}: the loss or the step, not its data"
        )


def _require_on_device(tree: Any, device: Device) -> None:
    """Raises ArgumentError for arguments that lie in the host's memory."""
    there = [leaf for leaf in jax.tree.leaves(tree) if device.is_host_memory(compat.memory_kind(leaf))]
    if there:
        size = format_bytes(sum(leaf.size * leaf.dtype.itemsize for leaf in there))
        raise ArgumentError(
            f"in the host's memory (memory kind {compat.memory_kind(there[0])!r}): {count_of(len(there), 'argument')},"
            f" {size}. A"
            " gradient reads its arguments on the device: place them there; or plan the whole step, jaxremat.jit(step,"
            " ..., allow=('offload',)), which brings each to the device where it is read"
        )


def check_options(
    budget: Budget, *, solver: str | Solver | type[Solver], emit: str, verify: str, allow: Sequence[str] = ()
) -> None:
    """Raises ArgumentError for a budget, solver, form, verification or permission that cannot be understood."""
    parse_budget(budget)
    solver_named(solver)
    require_one_of("emit", emit, FORMS)
    require_one_of("verify", verify, VERIFICATIONS)
    permissions(allow)


def require_one_of(name: str, value: str, known: Sequence[str]) -> str:
    """The value of an option. Raises ArgumentError for one that is unknown."""
    if value not in known:
        hint = did_you_mean(str(value), known)
        raise ArgumentError(f"{name}={value!r} is unknown; choose one of {', '.join(known)}.{hint}")
    return value


def host_budget_bytes(host_budget: int | str | None, allow: Iterable[str]) -> int | None:
    """The most that may wait on the host; None for any amount. Raises ArgumentError for what is no number of bytes, and
    where nothing may wait there."""
    if host_budget is None:
        return None
    if "offload" not in permissions(allow):
        raise ArgumentError(
            f"host_budget={host_budget!r} bounds what waits on the host: allow it with allow=('offload',)"
        )
    with contextlib.suppress(ArgumentError):
        parsed = parse_budget(host_budget)
        if isinstance(parsed, int):
            return parsed
    raise ArgumentError(f"host_budget={host_budget!r}: give bytes, or text with a unit such as '200GiB'")


def permissions(allow: Iterable[str]) -> frozenset[str]:
    """The permissions that `allow` names.

    Raises:
      ArgumentError: for a name that is none.
    """
    if not isinstance(allow, Iterable) or isinstance(allow, Mapping):  # whose names may stand beside a False
        raise ArgumentError(
            f"allow={allow!r}: give permissions, such as ('offload',); there are {', '.join(PERMISSIONS)}"
        )
    given = (allow,) if isinstance(allow, str) else tuple(allow)
    unknown = [permission for permission in given if permission not in PERMISSIONS]
    if unknown:
        hint = did_you_mean(str(unknown[0]), PERMISSIONS)
        raise ArgumentError(
            f"allow={allow!r}: {unknown[0]!r} is unknown; the permissions are {', '.join(PERMISSIONS)}.{hint}"
        )
    return frozenset(given)
