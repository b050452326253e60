"""Element-wise functions with a derivative of their own, such as `jax.nn.relu`, on blocks of their operands.

Their equation holds the function and its rule for one shape. Where both are element-wise throughout, they mean the same
for any block.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxremat.base import compat
from jaxremat.base.compat import Eqn, Jaxpr
from jaxremat.trace.activity import is_differentiable
from jaxremat.trace.jaxpr import evaluate, inline_calls, shape_of
from jaxremat.trace.primitives import ELEMENTWISE


def is_elementwise(eqn: Eqn) -> bool:
    """Whether an equation is such a function, of operands of one shape."""
    if eqn.primitive.name != "custom_jvp_call" or not all(map(is_differentiable, eqn.invars)):
        return False
    shapes = {shape_of(v).shape for v in (*eqn.invars, *eqn.outvars)}
    return len(shapes) == 1 and all(
        _fits_any_block(inner, eqn) for body in _function_and_rule(eqn) for inner in body.eqns
    )


def on_blocks(eqn: Eqn, blocks: Sequence[jax.Array]) -> jax.Array:
    """The function of blocks, with its derivative."""
    function, rule = _function_and_rule(eqn)
    of_block = jax.custom_jvp(lambda *xs: _evaluated(function, xs)[0])
    of_block.defjvp(lambda primals, tangents: tuple(_evaluated(rule, (*primals, *tangents))))
    return of_block(*blocks)


def _function_and_rule(eqn: Eqn) -> tuple[Jaxpr, Jaxpr]:
    """The function, and the rule from operands and their tangents to result and tangent."""
    shapes = [shape_of(v) for v in eqn.invars]
    rule = jax.make_jaxpr(compat.derivative_rule(eqn))(*shapes, *shapes)
    return inline_calls(eqn.params["call_jaxpr"]), inline_calls(rule)


def _fits_any_block(inner: Eqn, eqn: Eqn) -> bool:
    """Whether an equation of a function or its rule means the same for a block; rules often call their function."""
    if inner.primitive.name == "custom_jvp_call":
        return str(inner.params["call_jaxpr"]) == str(eqn.params["call_jaxpr"]) or is_elementwise(inner)
    return inner.primitive.name in ELEMENTWISE or _spreads_a_number(inner, shape_of(eqn.outvars[0]).shape)


def _spreads_a_number(eqn: Eqn, shape: tuple[int, ...]) -> bool:
    spreads = eqn.primitive.name == "broadcast_in_dim" and not shape_of(eqn.invars[0]).shape
    return spreads and shape_of(eqn.outvars[0]).shape == shape


def _evaluated(jaxpr: Jaxpr, blocks: Sequence[jax.Array]) -> list[Any]:
    def rule(eqn: Eqn, inputs: list[Any]) -> list[Any] | None:
        if eqn.primitive.name == "custom_jvp_call":
            return [on_blocks(eqn, inputs)]
        if eqn.primitive.name == "broadcast_in_dim":
            return [jnp.broadcast_to(inputs[0], blocks[0].shape)]
        return None

    return evaluate(jaxpr, blocks, rule)
