"""Whether the library's promises hold on the installed JAX and device: to be asked after an upgrade.

Three promises, of two small programs in every form that can express them: what runs again is neither merged nor
hoisted by the compiler (saving), what is predicted to fit is compiled to fit (prediction), values and gradients are the
plain ones (gradients).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from jaxremat.base.errors import GradientError
from jaxremat.compiled.compile import compile_gradient
from jaxremat.planning.entry import plan
from jaxremat.planning.plan import Plan

_DEPTH, _WIDTH, _ROWS = 12, 64, 16384  # values of 4 MiB, so that the program is modelled and not replayed
_SHARE = 0.7  # of the bytes of the plain program: what is asked of each form
_MOST_BELOW = 0.15
"""By how much a prediction may be too low: docs/limits.md says where it is that much."""


@dataclasses.dataclass(frozen=True)
class Promise:
    """One promise, of one program in one form.

    Attributes:
      name: what is promised, of what.
      holds: whether it does here.
      told: the numbers.
    """

    name: str
    holds: bool
    told: str

    def __str__(self) -> str:
        return f"{'holds' if self.holds else 'FAILS'}  {self.name:<31}  {self.told}"


def promises() -> Iterator[Promise]:
    """Each promise, as it has been tried on the default backend's device."""
    for form in ("schedule", "segments", "names"):
        yield from _of_program(f"{form}, unrolled", _unrolled, form)
    yield from _of_program("schedule, scanned", _scanned, "schedule")


def _of_program(name: str, fun: Callable[..., Any], form: str) -> Iterator[Promise]:
    args = _arguments()
    plain_bytes = compile_gradient(fun, args).peak_bytes
    made = plan(fun, *args, budget=int(_SHARE * plain_bytes), emit=form, verify="replay")
    compiled_bytes = compile_gradient(made.apply(fun), args).peak_bytes
    yield _saving(name, compiled_bytes / plain_bytes)
    yield _prediction(name, made.peak_bytes / compiled_bytes - 1)
    yield _gradients(name, made)


def _saving(name: str, share: float) -> Promise:
    told = f"{share:.0%} of the plain program's bytes are compiled, {_SHARE:.0%} were asked for"
    return Promise(f"saving, {name}", share <= _SHARE / (1 - _MOST_BELOW), told)


def _prediction(name: str, apart: float) -> Promise:
    return Promise(f"prediction, {name}", apart >= -_MOST_BELOW, f"{apart:+.1%} of what is compiled")


def _gradients(name: str, made: Plan) -> Promise:
    try:
        check = made.check_grads(*_arguments())
    except GradientError as error:
        return Promise(f"gradients, {name}", False, str(error))
    return Promise(f"gradients, {name}", True, f"within {check.largest_difference:.0e} of the plain ones")


def _arguments() -> tuple[list[jax.Array], jax.Array]:
    *keys, last = jax.random.split(jax.random.key(0), _DEPTH + 1)
    return [0.1 * jax.random.normal(key, (_WIDTH, _WIDTH)) for key in keys], jax.random.normal(last, (_ROWS, _WIDTH))


def _layer(x: jax.Array, w: jax.Array) -> jax.Array:
    return x + jnp.tanh(x @ w)


def _unrolled(ws: list[jax.Array], x: jax.Array) -> jax.Array:
    return jnp.mean(functools.reduce(_layer, ws, x) ** 2)


def _scanned(ws: list[jax.Array], x: jax.Array) -> jax.Array:
    out, _ = jax.lax.scan(lambda x, w: (_layer(x, w), None), x, jnp.stack(ws))
    return jnp.mean(out**2)
