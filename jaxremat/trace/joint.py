"""The joint program: forward and backward of a function in one flat jaxpr.

`jax.vjp` under `make_jaxpr` shows everything that a gradient computes. Equations that depend on a cotangent are the
backward; the rest is the forward, values that only the backward reads included. A plan is free to reorder and repeat
any of them, which a jaxpr of the primal function alone would not allow.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxremat.base import compat
from jaxremat.base.compat import Eqn, Jaxpr, Var
from jaxremat.base.errors import PlanMismatchError
from jaxremat.trace import jaxpr as jaxprs
from jaxremat.trace.fingerprint import fingerprint_anywhere
from jaxremat.trace.late_writes import late_writes
from jaxremat.trace.masks import Masks, pair_masks_among
from jaxremat.trace.primal import Primal, read_primal
from jaxremat.trace.round_trips import RoundTrip, round_trips_in, with_round_trips


@dataclasses.dataclass(frozen=True, eq=False)
class Joint:
    """Forward and backward in one flat jaxpr.

    Attributes:
      primal: what was differentiated.
      jaxpr: inputs are the primal's inputs, then one cotangent per `primal.cotangents_of`; outputs are the primal's
        outputs, then one gradient per `primal.wrt`.
      direct: the same program without round trips; None where it is this one.
    """

    primal: Primal
    jaxpr: Jaxpr
    direct: Joint | None = None

    @property
    def inputs(self) -> list[Var]:
        return self.jaxpr.invars[: len(self.primal.jaxpr.invars)]

    @property
    def cotangents(self) -> list[Var]:
        return self.jaxpr.invars[len(self.primal.jaxpr.invars) :]

    @property
    def outputs(self) -> list[Any]:
        return self.jaxpr.outvars[: len(self.primal.jaxpr.outvars)]

    @property
    def gradients(self) -> list[Any]:
        return self.jaxpr.outvars[len(self.primal.jaxpr.outvars) :]

    @property
    def eqns(self) -> list[Eqn]:
        return self.jaxpr.eqns

    @functools.cached_property
    def backward(self) -> np.ndarray:
        """[N] bool: equations that depend on a cotangent."""
        dependent = set(self.cotangents)
        backward = np.zeros(len(self.eqns), bool)
        for index, eqn in enumerate(self.eqns):
            if any(var in dependent for var in jaxprs.vars_of(eqn.invars)):
                dependent.update(eqn.outvars)
                backward[index] = True
        return backward

    @functools.cached_property
    def fingerprint(self) -> str:
        """A digest of forward and backward, and so of the derivative rules that the program brings along."""
        return fingerprint_anywhere(self.jaxpr)

    def require_planned(self, planned: str) -> None:
        """Raises PlanMismatchError where this is not the program of a fingerprint; an empty one asks for nothing."""
        if planned and self.fingerprint != planned:
            raise PlanMismatchError(
                "the function computes what was planned, but its gradient is another program: a derivative rule"
                " (jax.custom_vjp, jax.custom_jvp) is not the planned one, or this is another version of JAX. Plan"
                " again."
            )

    @functools.cached_property
    def early_values(self) -> frozenset[Var]:
        """What the equations of the forward make."""
        return frozenset(v for eqn, late in zip(self.eqns, self.backward) if not late for v in eqn.outvars)

    @functools.cached_property
    def values(self) -> tuple[Var, ...]:
        """[V] every value that an equation makes, in order: value ids count through them."""
        return tuple(v for eqn in self.eqns for v in eqn.outvars)

    @property
    def num_values(self) -> int:
        return len(self.values)

    @functools.cached_property
    def producer(self) -> np.ndarray:
        """[V] the equation that makes each value."""
        return np.repeat(np.arange(len(self.eqns)), [len(eqn.outvars) for eqn in self.eqns])

    @functools.cached_property
    def reads(self) -> np.ndarray:
        """[R, 2] pairs (value, equation that reads it)."""
        pairs = [(value, node) for node, values in enumerate(self.values_read) for value in values]
        return np.asarray(pairs, np.int64).reshape(-1, 2)

    @functools.cached_property
    def values_of(self) -> tuple[tuple[int, ...], ...]:
        """For each equation, the values that it makes."""
        count = itertools.count()
        return tuple(tuple(next(count) for _ in eqn.outvars) for eqn in self.eqns)

    @functools.cached_property
    def values_read(self) -> tuple[tuple[int, ...], ...]:
        """For each equation, the values of other equations that it reads, ascending."""
        value_of = {var: value for value, var in enumerate(self.values)}
        return tuple(
            tuple(sorted({value_of[v] for v in jaxprs.vars_of(eqn.invars) if v in value_of})) for eqn in self.eqns
        )

    @functools.cached_property
    def round_trips(self) -> tuple[RoundTrip, ...]:
        """Values that may wait in another form."""
        return round_trips_in(self.jaxpr)

    @functools.cached_property
    def on_a_trip(self) -> np.ndarray:
        """[N] bool: equations of round trips; the others are those of `direct`, one by one."""
        ways = {id(eqn) for trip in self.round_trips for eqn in (trip.way_there, trip.way_back)}
        return np.asarray([id(eqn) in ways for eqn in self.eqns], bool)

    @functools.cached_property
    def restored_of(self) -> dict[Var, Var]:
        """For each value with a round trip, what late readers read in its place."""
        return {trip.source: trip.restored for trip in self.round_trips}

    @functools.cached_property
    def constants(self) -> tuple[Eqn, ...]:
        """Equations that spread a number over an array, perhaps over several in a row, or count: compilers write their
        results where they are read."""
        return jaxprs.constants_among(self.eqns)

    @functools.cached_property
    def masks(self) -> Masks:
        """Which of two positions may see the other, from their indices alone."""
        return pair_masks_among(self.eqns, self.jaxpr.outvars)

    @functools.cached_property
    def late_writes(self) -> dict[int, Eqn]:
        """For equations that write into zeros, as scans do, or have some inside, by index, what computes the same and
        makes what it writes into when it runs."""
        return dict(late_writes(self.eqns, self.constants))


def differentiate(
    primal: Primal,
    run: Callable[[Sequence[Any]], list[Any]] | None = None,
    storages: Sequence[str] = (),
    weights: Sequence[int] | None = None,
) -> Joint:
    """The joint jaxpr of a primal program.

    Args:
      primal: the program.
      run: runs the primal on flat inputs in another way (with rewritten loops, say); as it stands by default.
      storages: forms in which forward values may wait for the backward; see `trace.round_trips`.
      weights: the inputs whose gradients may be estimated, where a form does that; None for all.
    """
    joint = Joint(primal, jaxprs.inline_calls(gradient_jaxpr(primal, run)))
    if not storages:
        return joint
    chosen = frozenset(joint.inputs if weights is None else (joint.inputs[i] for i in weights))
    return Joint(primal, with_round_trips(joint.jaxpr, joint.backward, storages, chosen), joint)


def gradient_jaxpr(primal: Primal, run: Callable[[Sequence[Any]], list[Any]] | None = None) -> Jaxpr:
    """As `differentiate`, with calls and checkpoints in place."""
    run = run or (lambda inputs: jaxprs.evaluate(primal.jaxpr, inputs))
    with_cotangent, others = primal.cotangents_of, _complement(primal.cotangents_of, len(primal.jaxpr.outvars))

    def joint(inputs: Any, cotangents: Any) -> Any:
        def differentiable(*free: Any) -> Any:
            outputs = run(_placed(inputs, primal.wrt, free))
            return [outputs[i] for i in with_cotangent], [outputs[i] for i in others]

        results, pull_back, rest = jax.vjp(differentiable, *[inputs[i] for i in primal.wrt], has_aux=True)
        outputs = _placed([None] * len(primal.jaxpr.outvars), (*with_cotangent, *others), (*results, *rest))
        return outputs, list(pull_back(cotangents))

    inputs = [jaxprs.shape_of(v) for v in primal.jaxpr.invars]
    cotangents = [cotangent_shape(primal.jaxpr.outvars[i]) for i in with_cotangent]
    return jax.make_jaxpr(joint)(inputs, cotangents)


def trace_joint(fun: Callable[..., Any], *args: Any, argnums: int | Sequence[int] = 0, has_aux: bool = False) -> Joint:
    """`read_primal`, then `differentiate`."""
    return differentiate(read_primal(fun, args, argnums, has_aux))


def cotangent_shape(atom: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(atom.aval.shape, atom.aval.dtype, **compat.placement(atom.aval.to_ct_aval()))


def _complement(indices: Sequence[int], number: int) -> tuple[int, ...]:
    return tuple(i for i in range(number) if i not in set(indices))


def _placed(values: Sequence[Any], indices: Sequence[int], replacements: Sequence[Any]) -> list[Any]:
    out = list(values)
    for i, value in zip(indices, replacements, strict=True):
        out[i] = value
    return out
