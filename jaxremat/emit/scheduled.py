"""A script as a JAX function: a custom_vjp whose forward and backward run its segments."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxremat.base import compat
from jaxremat.base.compat import Eqn, Literal, Var
from jaxremat.base.errors import EmissionError
from jaxremat.emit.orders import AS_IT_IS, WITHOUT_UNIT_AXES, BarrierForm, Order
from jaxremat.emit.script import Script, Segment, made_by
from jaxremat.trace import jaxpr as jaxprs
from jaxremat.trace.joint import Joint
from jaxremat.trace.primal import Primal
from jaxremat.trace.splice import Puts, at


def run_forward(joint: Joint, script: Script, inputs: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """(outputs, residual values) of the forward pass."""
    env = _constants(joint, script) | dict(zip(joint.inputs, inputs, strict=True))
    run_segments((*script.opening, *script.forward), env, script.same, frozenset(joint.inputs), script.orders)
    return [jaxprs.value_of(env, v) for v in joint.outputs], [env[v] for v in script.residuals]


def run_backward(joint: Joint, script: Script, residuals: Sequence[Any], cotangents: Sequence[Any]) -> list[Any]:
    """One gradient per differentiated input."""
    env = _constants(joint, script) | _with_restored(joint, dict(zip(script.residuals, residuals, strict=True)))
    env.update(zip(joint.cotangents, cotangents, strict=True))
    run_segments((*script.opening, *script.backward), env, script.same, frozenset(joint.inputs), script.orders)
    return [jaxprs.value_of(env, v) for v in joint.gradients]


def _with_restored[Known](joint: Joint, residuals: dict[Var, Known]) -> dict[Var, Known]:
    """What the forward left, known also as what would come back of it, had it waited in another form."""
    restored = joint.restored_of
    return residuals | {restored[v]: value for v, value in residuals.items() if v in restored}


_NOTHING: Mapping[Var, Var] = types.MappingProxyType({})
_AS_WRITTEN: Mapping[Var, Order] = types.MappingProxyType({})


def run_segments(
    segments: Sequence[Segment],
    env: dict[Var, Any],
    same: Mapping[Var, Var] = _NOTHING,
    given: Set[Var] = frozenset(),
    orders: Mapping[Var, Order] = _AS_WRITTEN,
) -> None:
    """Runs segments one after another; `env` holds what is known before, and then what they have made.

    Args:
      segments: what runs.
      env: values by variable.
      same: as of a script.
      given: inputs of the program, which pass barriers in the shape and so in the layout that they come in: a weight
        that passed as [7, 7, 32] was transposed before its reader did that with [7, 7, 1, 32].
      orders: as of a script.
    """
    for segment in segments:
        through = [compat.in_row_major(env[v]) if v in segment.results else env[v] for v in segment.through]
        forms = [AS_IT_IS if v in given else orders.get(v, WITHOUT_UNIT_AXES) for v in segment.through]
        behind = dict(zip(segment.through, behind_barrier(through, forms)))
        env.update((v, behind[v]) for v in segment.passed)
        inside = env | behind
        _run(segment.eqns, inside, same, orders)
        env.update((v, inside[v]) for v in made_by(segment.eqns, same))


def behind_barrier(values: Sequence[Any], forms: Sequence[BarrierForm]) -> Sequence[Any]:
    """The same behind a barrier, which each value passes in a form of its own; all as they are over a mesh, of whose
    axes some may be explicit for others, and not for the value."""
    if not values:
        return ()
    chosen = [form if _is_on_one_device(value) else AS_IT_IS for value, form in zip(values, forms, strict=True)]
    passed = lax.optimization_barrier([form.turned(value) for value, form in zip(values, chosen)])
    return [form.restored(back, jnp.shape(value)) for back, value, form in zip(passed, values, chosen)]


def _is_on_one_device(value: Any) -> bool:
    aval: Any = jax.typeof(value)
    return bool(aval.sharding.mesh.empty)


def put_script[Stand](program: Puts[Stand], joint: Joint, script: Script) -> list[Stand | Literal]:
    """Puts forward and backward of a script into a program: what `run_forward`, then `run_backward` are traced to.

    Returns:
      What stands for the outputs, then for the gradients.
    """
    forward = program.inputs | script.numbers
    put_segments(program, (*script.opening, *script.forward), forward, script.same)
    backward = program.inputs | script.numbers | _with_restored(joint, {v: forward[v] for v in script.residuals})
    put_segments(program, (*script.opening, *script.backward), backward, script.same)
    return [*(at(forward, atom) for atom in joint.outputs), *(at(backward, atom) for atom in joint.gradients)]


def put_segments[Stand](
    program: Puts[Stand],
    segments: Sequence[Segment],
    env: dict[Var, Stand | Literal],
    same: Mapping[Var, Var] = _NOTHING,
) -> None:
    """Puts what `run_segments` runs into a program."""
    for segment in segments:
        outside = {v: env[v] for v in segment.barrier_operands if v not in segment.passed}
        env.update(program.put_barrier(segment.through, env) if segment.through else {})
        for eqn in segment.eqns:
            program.put(eqn, env)
            for v in eqn.outvars if same else ():
                if v in same:
                    env[same[v]] = env[v]
        made = set(made_by(segment.eqns, same)) if outside else ()
        env.update((v, value) for v, value in outside.items() if v not in made)


def emit_scheduled(
    primal: Primal, choose: Callable[[tuple[int, ...]], tuple[Joint, Script]]
) -> Callable[..., list[Any]]:
    """The flat primal function whose gradient runs a script.

    Args:
      primal: the program.
      choose: called when the function is differentiated, with the indices of the inputs that are; returns the joint
        program and its script. The joint program's `primal.wrt` must cover those indices, or `choose` must raise.

    Returns:
      A function from the primal's flat inputs to its flat outputs. Differentiating it through an output that was
      declared auxiliary raises EmissionError, as does forward mode. A second reverse mode around the first finds the
      program as it is written: it would keep what the first one recomputes, beside what that keeps.
    """

    @jax.custom_vjp
    def scheduled(*inputs: Any) -> Any:
        return jaxprs.evaluate(primal.jaxpr, inputs)

    def forward(*inputs: Any) -> Any:
        joint, script = choose(tuple(i for i, given in enumerate(inputs) if given.perturbed and _has_gradient(given)))
        outputs, residuals = run_forward(joint, script, [given.value for given in inputs])
        return outputs, _Residuals(tuple(residuals), joint, script)

    def backward(saved: Any, cotangents: Any) -> Any:
        planned = saved.joint.primal
        _refuse_auxiliary(planned, cotangents)
        wanted = [compat.instantiated(cotangents[i]) for i in planned.cotangents_of]
        gradients: list[Any] = [None] * len(planned.jaxpr.invars)
        for i, gradient in zip(planned.wrt, run_backward(saved.joint, saved.script, saved.values, wanted)):
            gradients[i] = gradient
        return tuple(gradients)

    scheduled.defvjp(forward, backward, symbolic_zeros=True)

    def run(*inputs: Any) -> Any:
        orders = compat.differentiations(inputs)
        if orders[:1] == ["forward"]:
            raise EmissionError(
                "a schedule is one of reverse mode, and forward mode is passing through it: plan with emit='segments'"
            )
        again = orders.count("reverse") > 1
        return jaxprs.evaluate(primal.jaxpr, inputs) if again else scheduled(*inputs)

    return run


def _has_gradient(given: Any) -> bool:
    """Integers that another planned function computed count as perturbed, too."""
    return jnp.issubdtype(jax.typeof(given.value).dtype, jnp.inexact)


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True, eq=False)
class _Residuals:
    """Residual values on their way from the forward to the backward, with the script that made them."""

    values: tuple[Any, ...]
    joint: Joint
    script: Script

    def tree_flatten(self) -> Any:
        return self.values, (self.joint, self.script)

    @classmethod
    def tree_unflatten(cls, static: Any, values: Any) -> Any:
        return cls(tuple(values), *static)


def _constants(joint: Joint, script: Script) -> dict[Var, Any]:
    numbers = {seed: jaxprs.value_of({}, number) for seed, number in script.numbers.items()}
    return dict(zip(joint.jaxpr.constvars, compat.consts_of(joint.jaxpr))) | numbers


def _run(
    eqns: Sequence[Eqn],
    env: dict[Var, Any],
    same: Mapping[Var, Var] = _NOTHING,
    orders: Mapping[Var, Order] = _AS_WRITTEN,
) -> None:
    """Runs equations; what is the `same` as a value that they make is known with it, and what waits in another order of
    axes is read so from the first."""
    for eqn in eqns:
        env.update(zip(eqn.outvars, compat.bind(eqn, [jaxprs.value_of(env, v) for v in eqn.invars]), strict=True))
        env.update((v, behind_barrier([env[v]], [orders[v]])[0]) for v in eqn.outvars if v in orders)
        env.update((same[v], env[v]) for v in eqn.outvars if v in same)


def _refuse_auxiliary(primal: Primal, cotangents: Sequence[Any]) -> None:
    zero = jax.custom_derivatives.SymbolicZero
    auxiliary = set(range(len(cotangents))) - set(primal.cotangents_of)
    used = [
        i
        for i in auxiliary
        if not isinstance(cotangents[i], zero) and jnp.issubdtype(jaxprs.dtype_of(primal.jaxpr.outvars[i]), jnp.inexact)
    ]
    if used:
        raise EmissionError(
            f"{len(used)} auxiliary outputs are differentiated; the plan was made with has_aux=True, where only the"
            " first result is. Plan again with has_aux=False."
        )
