"""What an optimizer does with the weights themselves, told apart from what it does with their gradients."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxremat.base import compat
from jaxremat.trace.jaxpr import vars_of


def is_decoupled(update: Any, params: Any) -> bool:
    """Whether `update(params) -> (updates, state)` is linear in the parameters and keeps nothing of them in its state.

    True of AdamW's weight decay; false of an L2 term in the gradient, and of trust ratios.
    """

    def derivative(params: Any, tangents: Any) -> Any:
        return jax.jvp(update, (params,), (tangents,))[1][0]

    n_params = len(jax.tree.leaves(params))
    slope = compat.without_dead_code(jax.make_jaxpr(derivative)(params, params))
    state = compat.without_dead_code(jax.make_jaxpr(lambda params: update(params)[1])(params))
    return not _reads(slope, slope.invars[:n_params]) and not _reads(state, state.invars)


def decay_rates(update: Any, params: Any, leaves: Any) -> list[jax.Array]:
    """The factor d of each of the flat `leaves` in update = f(gradient) + d * parameter, a scalar each."""
    flat, treedef = jax.tree.flatten(params)
    ones = [jnp.ones_like(p) if i in leaves else jnp.zeros_like(p) for i, p in enumerate(flat)]
    slopes = jax.tree.leaves(jax.jvp(update, (params,), (jax.tree.unflatten(treedef, ones),))[1][0])
    return [slopes[i][(0,) * slopes[i].ndim] for i in leaves]


def _reads(jaxpr: Any, variables: Any) -> bool:
    read = {v for eqn in jaxpr.eqns for v in vars_of(eqn.invars)} | set(vars_of(jaxpr.outvars))
    return not read.isdisjoint(variables)
