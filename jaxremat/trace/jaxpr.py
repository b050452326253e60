"""Reading and running jaxprs: the one interpreter that every pass of this library is an instance of."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

import jax
import numpy as np

from jaxremat.base import compat
from jaxremat.base.compat import Atom, Eqn, Jaxpr, Literal, Var
from jaxremat.trace.arguments import arrays_and_tree
from jaxremat.trace.primitives import CALLS, CHECKPOINTS, OWN_RULES
from jaxremat.trace.splice import Env, Splice, at

Rule = Callable[[Eqn, list[Any]], list[Any] | None]

_INLINED = CALLS | CHECKPOINTS
_COMPUTED = _INLINED | OWN_RULES


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """A traced function.

    Attributes:
      jaxpr: takes the flattened arguments, returns the flattened results; carries its own constants.
      in_tree, out_tree: tree structure of (args,) and of the result; what is no array in it is part of the structure.
    """

    jaxpr: Jaxpr
    in_tree: Any
    out_tree: Any


def read(fun: Callable[..., Any], *args: Any) -> Program:
    """Traces `fun` at the shapes of `args` (arrays or ShapeDtypeStructs, in any tree)."""
    flat, in_tree = jax.tree.flatten(args)
    trees = []

    def flat_fun(*leaves: Any) -> Any:
        out, out_tree = arrays_and_tree(fun(*jax.tree.unflatten(in_tree, leaves)))
        trees.append(out_tree)
        return out

    jaxpr = jax.make_jaxpr(flat_fun)(*flat)
    return Program(jaxpr, in_tree, trees[-1])


def called_body(eqn: Eqn) -> Jaxpr | None:
    """The body of a call (jit, closed_call), which means no more than it; else None."""
    return _body(eqn, CALLS)


def inlined_body(eqn: Eqn) -> Jaxpr | None:
    """The body of a call or of a checkpoint, which compute what it computes; else None."""
    return _body(eqn, _INLINED)


def computed_body(eqn: Eqn) -> Jaxpr | None:
    """The body of a call, a checkpoint or a function with its own differentiation rule; else None."""
    return _body(eqn, _COMPUTED)


def is_checkpoint(eqn: Eqn) -> bool:
    """Whether an equation is a checkpoint that has not been differentiated yet."""
    known = compat.primitive_name(eqn) in CHECKPOINTS
    return known and not compat.params_of(eqn).get("differentiated", False)


def _body(eqn: Eqn, key_of: Mapping[str, str]) -> Jaxpr | None:
    key = key_of.get(compat.primitive_name(eqn))
    return compat.params_of(eqn)[key] if key else None


def evaluate(
    jaxpr: Jaxpr, inputs: Sequence[Any], rule: Rule | None = None, consts: Sequence[Any] | None = None
) -> list[Any]:
    """Runs a jaxpr on `inputs`, equation by equation.

    Args:
      jaxpr: what to run; it carries its constants.
      inputs: one value per `jaxpr.invars`, concrete or traced.
      rule: called as rule(equation, inputs) before each equation; returns the outputs, or None to run the equation
        as it stands.
      consts: stand-ins for the constants that the jaxpr carries; its own by default.

    Returns:
      One value per `jaxpr.outvars`.
    """
    env: dict[Var, Any] = dict(zip(jaxpr.constvars, compat.consts_of(jaxpr) if consts is None else consts))
    env.update(zip(jaxpr.invars, inputs, strict=True))
    last = last_readers(jaxpr)
    for index, eqn in enumerate(jaxpr.eqns):
        values = [value_of(env, atom) for atom in eqn.invars]
        outputs = rule(eqn, values) if rule else None
        if outputs is None:
            outputs = compat.bind(eqn, values)
        env.update(zip(eqn.outvars, outputs, strict=True))
        for atom in {*vars_of(eqn.invars), *eqn.outvars}:
            if last.get(atom, -1) <= index:
                env.pop(atom, None)
    return [value_of(env, atom) for atom in jaxpr.outvars]


def inlining(body_of: Callable[[Eqn], Jaxpr | None]) -> Rule:
    """A rule for `evaluate` that replaces equations by the bodies that `body_of` gives, at every depth of them."""

    def rule(eqn: Eqn, inputs: list[Any]) -> list[Any] | None:
        body = body_of(eqn)
        if body is None:
            return None
        with compat.at_position_of(eqn):
            return evaluate(body, inputs, rule)

    return rule


def inline_calls(jaxpr: Jaxpr) -> Jaxpr:
    """The same program with jit, closed_call and remat equations replaced by their bodies, and each `jax.Ref` that it
    makes by its values; dead code removed."""
    jaxpr = compat.with_refs_as_values(jaxpr)
    flat = Splice(jaxpr)
    env = flat.inputs
    _put_flat(flat, jaxpr, env)
    return compat.without_dead_code(flat.program([at(env, atom) for atom in jaxpr.outvars]))


def _put_flat(flat: Splice, jaxpr: Jaxpr, env: Env, within: Any = ()) -> None:
    """Puts in the equations of a program, at every depth outside loops and custom rules."""
    for eqn in jaxpr.eqns:
        body, name = inlined_body(eqn), compat.name_of(eqn)
        if body is not None:
            inner = flat.constants_of(body) | dict(zip(body.invars, (at(env, atom) for atom in eqn.invars)))
            _put_flat(flat, body, inner, within + compat.stack_of(eqn) if within else compat.stack_of(eqn))
            env.update(zip(eqn.outvars, (at(inner, atom) for atom in body.outvars)))
        else:
            flat.put(eqn if name is None else compat.as_mark(eqn, name), env, within)


def traced_with(jaxpr: Jaxpr, rule: Rule) -> Jaxpr:
    """The program that a jaxpr is under a rule for `evaluate`, without dead code."""
    made = jax.make_jaxpr(lambda *xs: evaluate(jaxpr, xs, rule))(*map(argument_like, jaxpr.invars))
    made = compat.without_dead_code(made)
    compat.check_jaxpr(made)
    return made


def last_readers(jaxpr: Jaxpr) -> dict[Var, int]:
    """For each variable, the index of the last equation that reads it; outputs are read after the last one."""
    last: dict[Var, int] = {}
    for index, eqn in enumerate(jaxpr.eqns):
        for var in vars_of(eqn.invars):
            last[var] = index
    for var in vars_of(jaxpr.outvars):
        last[var] = len(jaxpr.eqns)
    return last


def value_of(env: dict[Var, Any], atom: Atom) -> Any:
    return atom.val if isinstance(atom, Literal) else env[atom]


def vars_of(atoms: Sequence[Atom]) -> list[Var]:
    return [atom for atom in atoms if not isinstance(atom, Literal)]


def shape_of(atom: Atom) -> jax.ShapeDtypeStruct:
    """Shape, dtype, weak type and place on a mesh of a variable, as an abstract argument."""
    aval: Any = atom.aval
    weak_type = getattr(aval, "weak_type", False)
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=weak_type, **compat.placement(aval))


def argument_like(atom: Atom) -> Any:
    """The same, as a trace takes it, in the memory where the variable's array lies."""
    return compat.in_host_memory(shape_of(atom)) if is_on_host(atom) else shape_of(atom)


def dtype_of(atom: Atom) -> Any:
    """The dtype of a variable's array, extended ones such as PRNG keys included."""
    aval: Any = atom.aval
    return aval.dtype


def is_constant(eqn: Eqn, constants: Set[Var] = frozenset()) -> bool:
    """Whether an equation spreads a number, or one of some constants, over an array, or counts."""
    return eqn.primitive.name in ("broadcast_in_dim", "iota") and all(v in constants for v in vars_of(eqn.invars))


def constants_among(eqns: Sequence[Eqn]) -> tuple[Eqn, ...]:
    """Those that are constant, perhaps because what they read is."""
    made: set[Var] = set()
    found = []
    for eqn in eqns:
        if is_constant(eqn, made):
            made.update(eqn.outvars)
            found.append(eqn)
    return tuple(found)


def is_on_host(atom: Atom) -> bool:
    """Whether a variable's array lies in the host's memory."""
    return compat.is_in_host_memory(atom.aval)


def size_bytes(atom: Atom) -> int:
    """Bytes that a variable's array takes on the device; typed PRNG keys count their raw words; tokens, and arrays in
    the host's memory, count nothing."""
    return 0 if is_on_host(atom) else array_bytes(atom)


def array_bytes(atom: Atom) -> int:
    """The same, wherever the array lies."""
    aval: Any = atom.aval
    if not hasattr(aval, "shape"):
        return 0
    dtype = aval.dtype
    itemsize = dtype.itemsize if isinstance(dtype, np.dtype) else _key_bytes(dtype)
    return math.prod(aval.shape) * itemsize


def _key_bytes(dtype: Any) -> int:
    """Bytes of one element of an extended dtype: the raw words of a typed PRNG key."""
    return math.prod(jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct((), dtype)).shape) * 4


def subjaxprs(eqn: Eqn) -> list[Jaxpr]:
    """Every jaxpr among an equation's parameters: loop bodies, branches, call bodies."""
    found = jax.tree.leaves(list(compat.params_of(eqn).values()), is_leaf=compat.is_jaxpr)
    return [x for x in found if compat.is_jaxpr(x)]


def has_effects(eqn: Eqn) -> bool:
    return bool(eqn.effects)
