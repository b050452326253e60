"""Programs that are put together: the same as those that are traced."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxremat.base import compat
from jaxremat.trace import jaxpr as jaxprs
from jaxremat.trace.fingerprint import describe

W, X = jnp.full((4, 4), 0.3), jnp.ones((3, 4))


def traced_flat(jaxpr):
    """What inlining means: the program evaluated call by call."""

    def rule(eqn, inputs):
        body, name = jaxprs.inlined_body(eqn), compat.name_of(eqn)
        with compat.at_position_of(eqn):
            if body is not None:
                return jaxprs.evaluate(body, inputs, rule)
            return None if name is None else [compat.mark(inputs[0], name)]

    return jaxprs.traced_with(jaxpr, rule)


def nested(w, x):
    with jax.named_scope("outer"):
        inner = jax.jit(lambda x: jax.nn.relu(x @ w) + 2)
        return jnp.sum(jax.jit(lambda x: inner(x) * inner(2 * x))(x))


def checkpointed(w, x):
    block = jax.checkpoint(lambda x: jax.ad_checkpoint.checkpoint_name(jnp.tanh(x @ w), "h"))
    return jnp.sum(block(block(x)))


def scanned(w, x):
    return jnp.sum(jax.lax.scan(lambda x, _: (jax.nn.gelu(x @ w), None), x, None, length=3)[0])


def with_constants(w, x):
    table = np.arange(12.0, dtype=np.float32).reshape(3, 4)
    return jnp.sum(jax.jit(lambda x: x * table + jnp.asarray(3, x.dtype))(x @ w) + table)


def with_literals(w, x):
    scale = jax.jit(lambda x, s: x * jax.lax.convert_element_type(s, x.dtype))
    return jnp.sum(scale(x @ w, 2))


def printing(w, x):
    jax.debug.callback(lambda y: None, x[0, 0])
    return jnp.sum(jax.jit(jnp.sin)(x @ w))


@pytest.mark.parametrize("fun", [nested, checkpointed, scanned, with_constants, with_literals, printing])
@pytest.mark.parametrize("transform", [lambda fun: fun, jax.value_and_grad], ids=["function", "gradient"])
def test_inlining_is_what_tracing_call_by_call_gives(fun, transform):
    jaxpr = jax.make_jaxpr(transform(fun))(W, X)
    wanted, given = traced_flat(jaxpr), jaxprs.inline_calls(jaxpr)
    compat.check_jaxpr(given)
    assert describe(given) == describe(wanted) and given.effects == wanted.effects
    assert list(map(compat.name_stack, given.eqns)) == list(map(compat.name_stack, wanted.eqns))
    assert list(map(compat.source_line, given.eqns)) == list(map(compat.source_line, wanted.eqns))
    for a, b in zip(jaxprs.evaluate(given, [W, X]), jaxprs.evaluate(jaxpr, [W, X]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
