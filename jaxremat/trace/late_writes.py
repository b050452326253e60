"""Scans and scatters that make what they write into when they run.

What a scan stacks begins as zeros, and so do many carries, and what a scatter adds to. Those depend on nothing, and a
compiler that runs first what is ready first makes them at the start of the program, for all of its loops and scatters.
Here they are made from numbers that come through a barrier together with what is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxremat.base import compat
from jaxremat.base.compat import Atom, Eqn, Jaxpr, Literal, Var
from jaxremat.trace import jaxpr as jaxprs
from jaxremat.trace.splice import Splice, at
from jaxremat.trace.stack import arrays_of, stacks

_SUMS = frozenset({"add", "add_any"})


def late_writes(eqns: Sequence[Eqn], constants: Sequence[Eqn]) -> Iterator[tuple[int, Eqn]]:
    """(position, call that computes the same) for each scan that stacks, or carries from spread numbers on, for each
    equation that writes into spread numbers, and for each call with such inside.

    Args:
      eqns: equations of a program.
      constants: those that spread numbers or count; nothing waits for them.
    """
    numbers = _spread_numbers(constants)
    free = {var for eqn in constants for var in eqn.outvars}
    sums = summed(eqns)
    for position, eqn in enumerate(eqns):
        if jaxprs.has_effects(eqn) or not all(map(_is_plain, eqn.outvars)):
            continue
        if eqn.primitive.name == "scan":
            begun = {} if compat.consts_of(eqn.params["jaxpr"]) else _begun(eqn, numbers)
        else:
            begun = {v: numbers[v] for v in written_into(eqn) if v in numbers and eqn.outvars[0] not in sums}
        body = jaxprs.computed_body(eqn)
        if begun:
            yield position, _late(eqn, begun, free)
        elif body and not compat.consts_of(body) and (inside := dict(_late_writes_in(body))):
            yield position, _with_late_writes_inside(eqn, body, inside)


def _late_writes_in(body: Jaxpr) -> Iterator[tuple[int, Eqn]]:
    return late_writes(body.eqns, jaxprs.constants_among(body.eqns))


def written_into(eqn: Eqn) -> tuple[Var, ...]:
    """What an equation writes into, where it has only to copy the rest."""
    name = eqn.primitive.name
    into = eqn.invars[:1] if name == "dynamic_update_slice" or name.startswith("scatter") else []
    return tuple(jaxprs.vars_of(into))


def summed(eqns: Sequence[Eqn]) -> set[Var]:
    """What is added to something else: where zeros have been scattered into, XLA scatters into the other one."""
    return {v for eqn in eqns if eqn.primitive.name in _SUMS for v in jaxprs.vars_of(eqn.invars)}


def _spread_numbers(constants: Sequence[Eqn]) -> dict[Var, Any]:
    """The number that fills each array, also where it is spread over several in a row."""
    numbers: dict[Var, Any] = {}
    for eqn in constants:
        for source in eqn.invars:  # none where a count is made
            if isinstance(source, Literal) or source in numbers:
                numbers[eqn.outvars[0]] = jaxprs.value_of(numbers, source)
    return numbers


def _begun(scan: Eqn, numbers: Mapping[Var, Any]) -> dict[Var, Any]:
    """The numbers that a scan's carries, and what it stacks, begin as."""
    num_consts, num_carry = compat.scan_arity(scan)
    carries = jaxprs.vars_of(scan.invars[num_consts:][:num_carry])
    stacks = scan.outvars[num_carry:]
    return {v: numbers[v] for v in carries if v in numbers} | {v: np.zeros((), jaxprs.dtype_of(v)) for v in stacks}


def _late(eqn: Eqn, begun: Mapping[Var, Any], free: Set[Var]) -> Eqn:
    """A call in place of an equation that makes what is `begun` once all that it reads, but for what is `free`, is
    there."""
    given = [v for v in dict.fromkeys(jaxprs.vars_of(eqn.invars)) if v not in begun]
    waited_for = [v for v in given if v not in free]
    stacked = [v for v in begun if v in eqn.outvars]

    def late_write(*inputs: Any) -> list[Any]:
        env = dict(zip(given, inputs))
        passed, seeds = lax.optimization_barrier(([env[v] for v in waited_for], [*begun.values()]))
        env.update(zip(waited_for, passed))  # what comes out and is not read, compilers leave out
        env.update((v, lax.broadcast(seed, jaxprs.shape_of(v).shape)) for v, seed in zip(begun, seeds))
        read = [jaxprs.value_of(env, atom) for atom in eqn.invars]
        if eqn.primitive.name == "scan":
            return _with_stacks_carried(eqn, read, [env[v] for v in stacked])
        return compat.bind(eqn, read)

    return called_in_place_of(eqn, late_write, given)


def _with_late_writes_inside(call: Eqn, body: Jaxpr, late: Mapping[int, Eqn]) -> Eqn:
    """A call in place of another, with some equations of its body replaced."""
    given, program = jaxprs.vars_of(call.invars), Splice(body)
    inner = program.inputs
    for position, eqn in enumerate(body.eqns):
        program.put(late.get(position, eqn), inner)
    replaced = program.program([at(inner, atom) for atom in body.outvars])

    def called(*inputs: Any) -> list[Any]:
        env = dict(zip(given, inputs))
        return jaxprs.evaluate(replaced, [jaxprs.value_of(env, atom) for atom in call.invars])

    return called_in_place_of(call, called, given)


def called_in_place_of(instead_of: Eqn, fun: Callable[..., list[Any]], given: Sequence[Atom]) -> Eqn:
    """A call of a function of some variables, in the place of an equation."""
    with compat.at_position_of(instead_of):
        (call,) = jax.make_jaxpr(jax.jit(fun))(*map(jaxprs.shape_of, given)).eqns
    return compat.rewired(call, [*given], list(instead_of.outvars))


def _with_stacks_carried(scan: Eqn, inputs: Sequence[Any], empty: Sequence[jax.Array]) -> list[Any]:
    """What a scan computes of its inputs, its results written into arrays that are there."""
    params, (num_consts, num_carry) = scan.params, compat.scan_arity(scan)
    consts, carry, slices = inputs[:num_consts], inputs[num_consts:][:num_carry], inputs[num_consts + num_carry :]

    def step(running: Any, entries: Any) -> Any:
        (carry, written), (slices, index) = running, entries
        made = jaxprs.evaluate(params["jaxpr"], [*consts, *carry, *slices])
        return (made[:num_carry], [stack.put(y, index) for stack, y in zip(written, made[num_carry:])]), None

    running, entries = ([*carry], stacks(empty)), ([*slices], lax.iota(np.int32, params["length"]))
    (carry, written), _ = lax.scan(step, running, entries, reverse=params["reverse"], unroll=params["unroll"])
    return [*carry, *arrays_of(written)]


def _is_plain(var: Var) -> bool:
    """Whether an array is one of numbers, on the device and on no mesh."""
    extended = jnp.issubdtype(jaxprs.dtype_of(var), jax.dtypes.extended)
    return not (extended or jaxprs.is_on_host(var) or compat.placement(var.aval))
