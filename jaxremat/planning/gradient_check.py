"""The planned gradient against the plain one, on real arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxremat.base.errors import GradientError
from jaxremat.planner.decision import Decision
from jaxremat.trace import jaxpr as jaxprs
from jaxremat.trace.joint import Joint
from jaxremat.trace.projections import DEVIATION
from jaxremat.trace.round_trips import STORAGES

_SHOWS_NOTHING = "comparing would show nothing. Check with arguments for which the function is finite."
_FARTHEST = 6.0  # deviations: of a normal distribution, two in a billion are off by more
_TINY_SHARE = 1e-3  # of the largest entry of all: what is smaller is compared by absolute difference


@dataclasses.dataclass(frozen=True)
class GradientCheck:
    """How far a planned gradient is from the plain one.

    Attributes:
      largest_difference: largest difference of an entry, relative to the largest entry of its array (but at least to
        a thousandth of the largest entry of all: below that there is only rounding).
      worst: the array where that is.
      rtol: what was allowed.
      arrays: how many arrays were compared.
    """

    largest_difference: float
    worst: str
    rtol: float
    arrays: int

    def __str__(self) -> str:
        return (
            f"{self.arrays} results and gradients agree within {self.largest_difference:.1e} relative"
            f" ({self.worst}); allowed {self.rtol:.1e}"
        )


def check_gradients(joint: Joint, decision: Decision, args: Sequence[Any], rtol: float | None = None) -> GradientCheck:
    """Runs a program's gradient as written and as planned, with the same random cotangents.

    Args:
      joint: the program, as planned.
      decision: what was decided for it.
      args: concrete arrays, in trees, as the plan's signature says.
      rtol: the largest relative difference allowed; None is eps ** 0.6 of the narrowest type that numbers are in, or
        wait in; where gradients may be estimates, far more than those are off by.

    Raises:
      GradientError: if a result or a gradient differs by more, holds NaN, or is infinite throughout.
    """
    primal = joint.primal
    rtol = _default_rtol(joint, decision) if rtol is None else rtol
    inputs = [*primal.captured, *jax.tree.leaves(tuple(args))]
    plain = _gradient(lambda *xs: jaxprs.evaluate(primal.jaxpr, xs), joint)(inputs)
    planned = _gradient(decision.emitted(primal), joint)(inputs)
    _refuse_nan(joint, decision, plain, planned)
    largest = max((_largest(a) for a in plain), default=0.0)
    differences = [_difference(a, b, _TINY_SHARE * largest) for a, b in zip(plain, planned, strict=True)]
    worst = int(np.argmax(differences))
    check = GradientCheck(differences[worst], _name(worst, joint, decision), rtol, len(plain))
    if not check.largest_difference <= rtol:
        raise GradientError(
            f"{check.worst} differs by {check.largest_difference:.2e} relative, {rtol:.1e} is allowed. Is the function"
            " deterministic? Pass rtol=... if the program is this sensitive to rounding."
        )
    return check


def _refuse_nan(joint: Joint, decision: Decision, plain: Sequence[Any], planned: Sequence[Any]) -> None:
    """Raises GradientError where there is nothing to compare: a NaN is equal to nothing, and an infinite number hides
    what is added to it."""
    for who, arrays in (("as it is written", plain), ("as it is planned", planned)):
        found = [i for i, array in enumerate(arrays) if np.isnan(_as_numbers(array)).any()]
        if found:
            count = int(np.isnan(_as_numbers(arrays[found[0]])).sum())
            raise GradientError(f"{_name(found[0], joint, decision)} holds {count} NaN, {who}: {_SHOWS_NOTHING}")
        infinite = [i for i, array in enumerate(arrays) if array.size and np.isinf(_as_numbers(array)).all()]
        if infinite:
            raise GradientError(f"{_name(infinite[0], joint, decision)} is infinite, {who}: {_SHOWS_NOTHING}")


def _gradient(run: Callable[..., list[Any]], joint: Joint) -> Callable[[list[Any]], list[Any]]:
    primal = joint.primal

    @jax.jit
    def gradient(inputs: Any) -> Any:
        def of_differentiated(*free: Any) -> Any:
            full = list(inputs)
            for position, value in zip(primal.wrt, free):
                full[position] = value
            outputs = run(*full)
            return [outputs[i] for i in primal.cotangents_of]

        outputs, back = jax.vjp(of_differentiated, *(inputs[i] for i in primal.wrt))
        keys = jax.random.split(jax.random.key(0), len(outputs))
        return [*outputs, *back([_cotangent(key, output) for key, output in zip(keys, outputs)])]

    return gradient


def _cotangent(key: Any, output: Any) -> Any:
    return jax.random.uniform(key, output.shape, jnp.float32, 0.5, 1.5).astype(output.dtype)


def _default_rtol(joint: Joint, decision: Decision) -> float:
    atoms = (*joint.jaxpr.invars, *(v for eqn in joint.eqns for v in eqn.outvars))
    dtypes = {atom.aval.dtype for atom in atoms if hasattr(atom.aval, "dtype")}
    eps = [float(jnp.finfo(d).eps) for d in dtypes if jnp.issubdtype(d, jnp.inexact)]
    eps += [2 * STORAGES[form].rounding for form in decision.form.storages]
    estimates = any(STORAGES[form].only_estimates for form in decision.form.storages)
    return max(max(eps, default=0.0) ** 0.6, estimates * _FARTHEST * DEVIATION)


def _largest(array: Any) -> float:
    finite = np.abs(_as_numbers(array))
    return float(np.max(finite, initial=0.0, where=np.isfinite(finite)))


def _difference(plain: Any, planned: Any, floor: float) -> float:
    a, b = _as_numbers(plain), _as_numbers(planned)
    same = a == b
    with np.errstate(invalid="ignore"):
        apart = np.where(same, 0.0, np.abs(a - b))
    apart = np.where(np.isnan(apart), np.inf, apart)
    return float(apart.max(initial=0.0) / max(_largest(plain), floor, np.finfo(np.float64).tiny))


def _as_numbers(array: Any) -> np.ndarray:
    wide = np.complex128 if jnp.issubdtype(array.dtype, jnp.complexfloating) else np.float64
    return np.asarray(array).astype(wide)


def _name(index: int, joint: Joint, decision: Decision) -> str:
    primal = joint.primal
    if index < len(primal.cotangents_of):
        return f"result {primal.cotangents_of[index]}"
    leaf = primal.wrt[index - len(primal.cotangents_of)] - len(primal.captured)
    return f"the gradient of {decision.signature[leaf]}" if leaf >= 0 else "the gradient of a captured value"
