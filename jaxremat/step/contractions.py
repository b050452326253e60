"""Contractions whose result is transposed, written the other way around.

A compiler does so by itself, unless the sum that a contraction owes to the other devices of a mesh stands between the
two: then the gradients of a step lie twice in memory, as they were summed and as they are read.
"""

from __future__ import annotations

import collections
from typing import Any

from jaxremat.base.compat import Eqn, Jaxpr, Var
from jaxremat.trace import jaxpr as jaxprs
from jaxremat.trace.splice import Splice, at


def turned_contractions(jaxpr: Jaxpr) -> Jaxpr:
    """The same program, in which no contraction is read by nothing but a transpose that its operands, in the other
    order, would make unnecessary."""
    readers = collections.Counter(v for eqn in jaxpr.eqns for v in jaxprs.vars_of(eqn.invars))
    readers.update(jaxprs.vars_of(jaxpr.outvars))
    made: dict[Any, Eqn] = {eqn.outvars[0]: eqn for eqn in jaxpr.eqns if eqn.primitive.name == "dot_general"}
    turned: dict[Var, Eqn] = {}
    for eqn in jaxpr.eqns:
        source = made.get(eqn.invars[0]) if eqn.primitive.name == "transpose" else None
        if source is not None and readers[source.outvars[0]] == 1 and _swaps_operands(source, eqn):
            turned[source.outvars[0]] = _turned(source, eqn)
    return _with_equations(jaxpr, turned) if turned else jaxpr


def _swaps_operands(contraction: Eqn, transpose: Eqn) -> bool:
    """Whether a transpose puts the right operand's dimensions before the left one's, after those of the batch."""
    (contracted, _), (batch, _) = contraction.params["dimension_numbers"]
    left, made = (len(jaxprs.shape_of(atoms[0]).shape) for atoms in (contraction.invars, contraction.outvars))
    first, middle = len(batch), left - len(contracted)
    order = (*range(first), *range(middle, made), *range(first, middle))
    return transpose.params["permutation"] == order


def _turned(contraction: Eqn, transpose: Eqn) -> Eqn:
    params: dict[str, Any] = dict(contraction.params)
    turned: Any = transpose.outvars[0].aval
    (left, right), (left_batch, right_batch) = params["dimension_numbers"]
    params["dimension_numbers"] = (right, left), (right_batch, left_batch)
    if isinstance(params["precision"], tuple):
        params["precision"] = params["precision"][::-1]
    if params["out_sharding"] is not None:
        params["out_sharding"] = turned.sharding
    return contraction.replace(invars=contraction.invars[::-1], outvars=transpose.outvars, params=params)


def _with_equations(jaxpr: Jaxpr, turned: dict[Var, Eqn]) -> Jaxpr:
    """The program with contractions, by what they made, as others that make what was transposed of it."""
    program = Splice(jaxpr)
    env = program.inputs
    for eqn in jaxpr.eqns:
        if not any(v in turned for v in jaxprs.vars_of(eqn.invars)):
            program.put(turned.get(eqn.outvars[0], eqn) if eqn.outvars else eqn, env)
    return program.program([at(env, atom) for atom in jaxpr.outvars])
