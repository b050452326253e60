"""Token-wise MLPs in a program: what is one, and that its tiles compute it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxremat.chunk.rewriting.mlp import MlpFinder
from jaxremat.trace import jaxpr as jaxprs

TOKENS, WIDTH, HIDDEN = 1024, 8, 64
rng = np.random.default_rng(0)
SHAPES = (TOKENS, WIDTH), (WIDTH, HIDDEN), (HIDDEN, WIDTH)
X, UP, DOWN = (jnp.asarray(rng.normal(size=shape) / 4, jnp.float32) for shape in SHAPES)


def found(fun, entries=2**13):
    jaxpr = jaxprs.inline_calls(jax.make_jaxpr(fun)(X, UP, DOWN))
    return MlpFinder(entries)(jaxpr), jaxpr


@pytest.mark.parametrize(
    "fun",
    [
        lambda x, up, down: jnp.tanh(x @ up) @ down,
        lambda x, up, down: (jax.nn.sigmoid(x @ up) * (x @ up)) @ down,
        lambda x, up, down: (jnp.sin(x.reshape(4, 256, WIDTH) @ up) @ down).reshape(TOKENS, WIDTH),
    ],
    ids=["plain", "gated", "batched"],
)
def test_an_mlp_is_computed_some_tokens_at_a_time(fun):
    (finding,), jaxpr = found(fun)
    assert finding.kind == "token-wise MLP" and np.prod(finding.shape) == TOKENS * HIDDEN
    env = dict(zip(jaxpr.invars, (X, UP, DOWN)))
    for eqn in jaxpr.eqns:
        made = eqn.primitive.bind(*(jaxprs.value_of(env, atom) for atom in eqn.invars), **eqn.params)
        env.update(zip(eqn.outvars, made if eqn.primitive.multiple_results else [made]))
    (ours,) = finding.emit([env[v] for v in finding.reads])
    np.testing.assert_allclose(ours, env[finding.gives[0]], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "fun",
    [
        lambda x, up, down: (h := jnp.tanh(x @ up), h @ down),
        lambda x, up, down: jax.nn.softmax(x @ up, 0) @ down,
        lambda x, up, down: jnp.tanh(x @ up).T @ x,
        lambda x, up, down: jnp.sin(x) @ up,
    ],
    ids=["hidden values are returned", "tokens meet", "a sum over tokens", "nothing wide inside"],
)
def test_what_is_no_mlp(fun):
    assert found(fun)[0] == []


def test_what_fits_in_one_tile_is_left():
    assert found(lambda x, up, down: jnp.tanh(x @ up) @ down, entries=TOKENS * HIDDEN)[0] == []
