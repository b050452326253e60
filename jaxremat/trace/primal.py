"""A function traced to one flat program, before it is differentiated."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from jaxremat.base import compat
from jaxremat.base.compat import Jaxpr, Var
from jaxremat.base.errors import ArgumentError, UnplannableError
from jaxremat.trace import jaxpr as jaxprs
from jaxremat.trace.arguments import checked_argnums
from jaxremat.trace.fingerprint import fingerprint
from jaxremat.trace.nnx_state import naming_what_is_closed_over
from jaxremat.trace.primitives import REDUCTIONS_OVER_AXES


@dataclasses.dataclass(frozen=True, eq=False)
class Primal:
    """A traced function before differentiation, flat.

    Attributes:
      jaxpr: inputs are the captured values, then the argument leaves; call-like equations are inlined.
      captured: outer tracers that the function closes over, now explicit inputs.
      wrt: indices into the jaxpr's inputs that are differentiated.
      cotangents_of: indices of the outputs that receive a cotangent.
      in_tree, out_tree: tree structure of (args,) and of the result.
      raw: the program from the same inputs with its calls, checkpoints included, in place.
      shardings: one per input, over meshes; None for an input on a single device, or nobody knows where.
      written: the program as it was written, where this one computes the same in another way.
      epilogues_after: the program before its loops took in what is computed of their results; None where they did not.
      masks_before_loops: whether loops are given the masks of positions that their iterations would make.
    """

    jaxpr: Jaxpr
    captured: tuple[Any, ...]
    wrt: tuple[int, ...]
    cotangents_of: tuple[int, ...]
    in_tree: Any
    out_tree: Any
    raw: Jaxpr | None = None
    shardings: tuple[NamedSharding | None, ...] = ()
    written: Primal | None = None
    epilogues_after: Primal | None = None
    masks_before_loops: bool = False

    @property
    def given(self) -> Primal:
        """The program that was to be planned."""
        return self.epilogues_after or self

    def as_written(self, *inputs: Any) -> list[Any]:
        """Runs the program with its calls in place, the author's checkpoints among them."""
        return jaxprs.evaluate(self.jaxpr if self.raw is None else self.raw, inputs)

    @property
    def inputs(self) -> list[jax.ShapeDtypeStruct]:
        """The flat inputs as abstract arguments, where they are."""
        shapes = [jaxprs.shape_of(v) for v in self.jaxpr.invars]
        return [
            shape if sharding is None else shape.update(sharding=sharding)
            for shape, sharding in zip(shapes, self.shardings or [None] * len(shapes), strict=True)
        ]

    @functools.cached_property
    def fingerprint(self) -> str:
        """A digest of the program and of what is differentiated."""
        return fingerprint(self.jaxpr, f"{self.wrt} {self.cotangents_of}")


def read_primal(
    fun: Callable[..., Any], args: Sequence[Any], argnums: int | Sequence[int] | None, has_aux: bool
) -> Primal:
    """Traces `fun` at the shapes of `args` and says what is differentiated.

    Args:
      fun: any JAX function.
      args: arrays or ShapeDtypeStructs, in trees.
      argnums: as in `jax.grad`; None for every leaf that can be differentiated, even if there is none.
      has_aux: whether `fun` returns (result, auxiliary data); auxiliary data receive no cotangent.

    Raises:
      ArgumentError: if `argnums` is out of range, or there is nothing to differentiate.
      UnplannableError: if it touches a `jax.Ref` from outside, or returns what it reduced along an axis of a `vmap`
        from outside.
      EmissionError: if it changes a module of Flax NNX that it closes over.
    """
    with naming_what_is_closed_over():
        program = jaxprs.read(fun, *args)
    _refuse_refs(program.jaxpr)
    captured = tuple(c for c in compat.consts_of(program.jaxpr) if isinstance(c, jax.core.Tracer))
    jaxpr = jaxprs.inline_calls(raw := with_explicit_captures(program.jaxpr, captured))
    outputs = _differentiated_outputs(program.out_tree, has_aux, jaxpr)
    _refuse_shared_results([jaxpr.outvars[i] for i in outputs], jaxpr)
    shardings = tuple(map(mesh_sharding, (*captured, *jax.tree.leaves(tuple(args)))))
    if argnums is None:
        wrt = _inexact(jaxpr.invars)
    else:
        wrt = _differentiated_leaves(args, argnums, len(captured), jaxpr)
        _refuse_nothing_to_differentiate(outputs, jaxpr)
    return Primal(jaxpr, captured, wrt, outputs, program.in_tree, program.out_tree, raw, shardings)


def apply_flat(primal: Primal, flat: Callable[..., list[Any]], args: Sequence[Any]) -> Any:
    """Calls a function of a primal's flat inputs and outputs on tree arguments."""
    return jax.tree.unflatten(primal.out_tree, flat(*primal.captured, *jax.tree.leaves(args)))


def _refuse_refs(jaxpr: Jaxpr) -> None:
    if any(compat.is_ref(var.aval) for var in (*jaxpr.constvars, *jaxpr.invars)):
        raise UnplannableError(
            "the function reads or changes a jax.Ref from outside: running a part of it again would change it again."
            " Take its value as an argument, and return the new one."
        )


def _refuse_shared_results(results: Sequence[Any], jaxpr: Jaxpr) -> None:
    """What all examples of a vmap around share has one cotangent, and a rule of our own would get one per example."""
    names = compat.mapped_axes(jaxpr)
    if names and not _apart(jaxpr).issuperset(jaxprs.vars_of(results)):
        raise UnplannableError(
            f"the function returns what it reduced along {', '.join(map(repr, sorted(names)))}, an axis of a vmap"
            " around it: all examples share it. Decorate what holds the whole vmap, or what comes before the reduction."
        )


def _apart(jaxpr: Jaxpr) -> set[Var]:
    """Values that each example of a vmap around a program has for itself, taking its inputs to be such."""
    apart = set(jaxpr.invars)
    for eqn in jaxpr.eqns:
        reads = [v in apart for v in jaxprs.vars_of(eqn.invars)]
        if eqn.primitive.name not in REDUCTIONS_OVER_AXES and (any(reads) or eqn.primitive.name == "axis_index"):
            apart.update(eqn.outvars)
    return apart


def mesh_sharding(leaf: Any) -> NamedSharding | None:
    """Where a leaf is, over a mesh: as its array says, or where it is traced its type, for axes that are explicit."""
    leaf = compat.primal_of(leaf)
    traced = isinstance(leaf, jax.core.Tracer)
    sharding = compat.placement(jax.typeof(leaf)).get("sharding") if traced else getattr(leaf, "sharding", None)
    return sharding if isinstance(sharding, NamedSharding) else None


def with_explicit_captures(jaxpr: Jaxpr, captured: tuple[Any, ...]) -> Jaxpr:
    if not captured:
        return jaxpr
    position = {id(c): i for i, c in enumerate(captured)}
    own = compat.consts_of(jaxpr)

    def run(*inputs: Any) -> Any:
        consts = [inputs[position[id(c)]] if id(c) in position else c for c in own]
        return jaxprs.evaluate(jaxpr, inputs[len(captured) :], consts=consts)

    outer = [jax.ShapeDtypeStruct(c.shape, c.dtype, **compat.placement(jax.typeof(c))) for c in captured]
    shapes = [*outer, *map(jaxprs.shape_of, jaxpr.invars)]
    return jax.make_jaxpr(run)(*shapes)


def _differentiated_leaves(args: Sequence[Any], argnums: Any, num_captured: int, jaxpr: Jaxpr) -> tuple[int, ...]:
    checked = checked_argnums(argnums, len(args))
    wanted = {i % len(args) for i in ((checked,) if isinstance(checked, int) else checked)}
    leaf_argument = [i for i, arg in enumerate(args) for _ in jax.tree.leaves(arg)]
    leaves = jaxpr.invars[num_captured:]
    chosen = [i for i, argument in enumerate(leaf_argument) if argument in wanted]
    for i in chosen:
        if not jnp.issubdtype(jaxprs.dtype_of(leaves[i]), jnp.inexact):
            raise ArgumentError(
                f"argument {leaf_argument[i]} holds a leaf of dtype {jaxprs.dtype_of(leaves[i])}; gradients need"
                f" floating or complex leaves. Choose other arguments with argnums=..."
            )
    if not chosen:
        raise ArgumentError(f"argnums={argnums} names arguments without any array: there is nothing to differentiate")
    return (*_inexact(jaxpr.invars[:num_captured]), *(num_captured + i for i in chosen))


def _differentiated_outputs(out_tree: Any, has_aux: bool, jaxpr: Jaxpr) -> tuple[int, ...]:
    number = len(jaxpr.outvars)
    if has_aux:
        parts = jax.tree.unflatten(out_tree, range(number))
        if not (isinstance(parts, tuple) and len(parts) == 2):
            raise ArgumentError("has_aux=True, but the function does not return a pair (result, auxiliary data)")
        number = out_tree.children()[0].num_leaves
    return _inexact(jaxpr.outvars[:number])


def _refuse_nothing_to_differentiate(outputs: Sequence[int], jaxpr: Jaxpr) -> None:
    if not outputs:
        dtypes = sorted({str(jaxprs.dtype_of(v)) for v in jaxpr.outvars})
        raise ArgumentError(
            f"the function returns only {', '.join(dtypes) or 'nothing'}: there is nothing to differentiate"
        )


def _inexact(atoms: Sequence[Any]) -> tuple[int, ...]:
    return tuple(i for i, atom in enumerate(atoms) if jnp.issubdtype(jaxprs.dtype_of(atom), jnp.inexact))
