"""Which values a gradient passes through: those that depend on what is differentiated and reach what is wanted.

Loops are followed to a fixpoint, branches joined; an equation that is not understood passes everything on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxremat.base import compat
from jaxremat.base.compat import Eqn, Jaxpr, Var
from jaxremat.trace import jaxpr as jaxprs

Flags = list[bool]


def perturbed_vars(jaxpr: Jaxpr, inputs: Sequence[bool]) -> set[Var]:
    """The floating variables whose value changes with the inputs that are flagged."""
    perturbed = {v for v, flag in zip(jaxpr.invars, inputs, strict=True) if flag and is_differentiable(v)}
    for eqn in jaxpr.eqns:
        flags = _flags(eqn.invars, perturbed)
        if any(flags):
            made = [v for v, flag in zip(eqn.outvars, _pushed(eqn, flags)) if flag and is_differentiable(v)]
            perturbed.update(made)
    return perturbed


def wanted_vars(jaxpr: Jaxpr, outputs: Sequence[bool], perturbed: set[Var]) -> set[Var]:
    """The perturbed variables that the flagged outputs depend on: those that receive a cotangent."""
    asked = jaxprs.vars_of([v for v, flag in zip(jaxpr.outvars, outputs, strict=True) if flag])
    wanted = perturbed.intersection(asked)
    for eqn in reversed(jaxpr.eqns):
        flags = _flags(eqn.outvars, wanted)
        if any(flags):
            reached = _pulled(eqn, flags, _flags(eqn.invars, perturbed))
            wanted.update(perturbed.intersection(jaxprs.vars_of([v for v, flag in zip(eqn.invars, reached) if flag])))
    return wanted


def scan_perturbed(body: Jaxpr, num_consts: int, num_carry: int, inputs: Sequence[bool]) -> tuple[Flags, Flags]:
    """(inputs, outputs) of a loop body that are perturbed in some iteration, when `inputs` of the scan are."""
    inputs = list(inputs)
    while True:
        perturbed = perturbed_vars(body, inputs)
        outputs = _flags(body.outvars, perturbed)
        carried = [a or b for a, b in zip(inputs[num_consts : num_consts + num_carry], outputs)]
        if carried == inputs[num_consts : num_consts + num_carry]:
            return inputs, carried + outputs[num_carry:]
        inputs[num_consts : num_consts + num_carry] = carried


def scan_wanted(
    body: Jaxpr, num_consts: int, num_carry: int, inputs: Sequence[bool], outputs: Sequence[bool]
) -> tuple[Flags, Flags]:
    """(inputs, outputs) of a loop body that receive a cotangent in some iteration.

    Args:
      body: the body, from constants, carry and slices to carry and slices.
      num_consts, num_carry: how many of the inputs are constants and carries.
      inputs: which inputs are perturbed in some iteration.
      outputs: which outputs of the scan receive a cotangent.
    """
    perturbed, outputs = perturbed_vars(body, inputs), list(outputs)
    while True:
        wanted = _flags(body.invars, wanted_vars(body, outputs, perturbed))
        carried = [a or b for a, b in zip(wanted[num_consts : num_consts + num_carry], outputs)]
        if carried == outputs[:num_carry]:
            wanted[num_consts : num_consts + num_carry] = [a and b for a, b in zip(carried, inputs[num_consts:])]
            return wanted, outputs
        outputs[:num_carry] = carried


def has_reverse_mode(jaxpr: Jaxpr, inputs: Sequence[bool], outputs: Sequence[bool] | None = None) -> bool:
    """Whether JAX can differentiate a program in reverse: no `while_loop` is on the way from the inputs flagged to the
    outputs flagged, or to any output."""
    perturbed = perturbed_vars(jaxpr, inputs)
    wanted = wanted_vars(jaxpr, [True] * len(jaxpr.outvars) if outputs is None else outputs, perturbed)
    return all(_reverses(eqn, perturbed, wanted) for eqn in jaxpr.eqns)


def _reverses(eqn: Eqn, perturbed: set[Var], wanted: set[Var]) -> bool:
    name, params = eqn.primitive.name, eqn.params
    inputs, outputs = _flags(eqn.invars, perturbed), _flags(eqn.outvars, wanted)
    if name == "while":
        return not any(outputs)
    if name == "scan":
        arity = compat.scan_arity(eqn)
        inside, _ = scan_perturbed(params["jaxpr"], *arity, inputs)
        _, received = scan_wanted(params["jaxpr"], *arity, inside, outputs)
        return has_reverse_mode(params["jaxpr"], inside, received)
    if name == "cond":
        return all(has_reverse_mode(branch, inputs[1:], outputs) for branch in params["branches"])
    body = jaxprs.inlined_body(eqn)
    return body is None or has_reverse_mode(body, inputs, outputs)


def is_differentiable(var: Any) -> bool:
    dtype = getattr(var.aval, "dtype", None)
    return dtype is not None and not jnp.issubdtype(dtype, jax.dtypes.extended) and jnp.issubdtype(dtype, jnp.inexact)


def _pushed(eqn: Eqn, inputs: Flags) -> Flags:
    name, params = eqn.primitive.name, eqn.params
    if name == "stop_gradient":
        return [False] * len(eqn.outvars)
    if name == "scan":
        return scan_perturbed(params["jaxpr"], *compat.scan_arity(eqn), inputs)[1]
    if name == "while":
        skip, consts = params["cond_nconsts"], params["body_nconsts"]
        return scan_perturbed(params["body_jaxpr"], consts, len(eqn.outvars), inputs[skip:])[1]
    if name == "cond":
        outputs = [_through(branch, inputs[1:]) for branch in params["branches"]]
        return [any(flags) for flags in zip(*outputs)]
    body = jaxprs.inlined_body(eqn)
    return _through(body, inputs) if body is not None else [True] * len(eqn.outvars)


def _through(jaxpr: Jaxpr, inputs: Flags) -> Flags:
    return _flags(jaxpr.outvars, perturbed_vars(jaxpr, inputs))


def _pulled(eqn: Eqn, outputs: Flags, perturbed: Flags) -> Flags:
    name, params = eqn.primitive.name, eqn.params
    if name == "scan" and not jaxprs.has_effects(eqn):
        num_consts, num_carry = compat.scan_arity(eqn)
        inside, _ = scan_perturbed(params["jaxpr"], num_consts, num_carry, perturbed)
        return scan_wanted(params["jaxpr"], num_consts, num_carry, inside, outputs)[0]
    body = jaxprs.inlined_body(eqn)
    return _back_through(body, outputs, perturbed) if body is not None else perturbed


def _back_through(jaxpr: Jaxpr, outputs: Flags, perturbed: Flags) -> Flags:
    return _flags(jaxpr.invars, wanted_vars(jaxpr, outputs, perturbed_vars(jaxpr, perturbed)))


def _flags(atoms: Sequence[Any], chosen: set[Var]) -> Flags:
    return [_in(atom, chosen) for atom in atoms]


def _in(atom: Any, chosen: set[Var]) -> bool:
    return isinstance(atom, Var) and atom in chosen
