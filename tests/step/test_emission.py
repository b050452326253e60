"""What enters the barriers of a scheduled step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import step_programs
from step_programs import copied, numbers, peak_bytes

import jaxremat


def dropping(weights, x, key):
    """Gradient descent on layers each of which drops a tenth of what it makes."""

    def loss(weights):
        h, drawn = x, key
        for w in weights:
            drawn, now = jax.random.split(drawn)
            h = h + jnp.where(jax.random.bernoulli(now, 0.9, h.shape), jnp.tanh(h @ w), 0.0)
        return (h**2).mean()

    value, grads = jax.value_and_grad(loss)(weights)
    return jax.tree.map(lambda w, g: w - 0.1 * g, weights, grads), value


def dropping_in_branches(weights, x, key):
    """The same in the branch of a conditional."""
    return jax.lax.cond(x[0, 0] > -1e3, dropping, lambda weights, x, key: (weights, 0.0), weights, x, key)


@pytest.mark.parametrize(("step", "raw"), [(dropping, False), (dropping, True), (dropping_in_branches, False)])
def test_masks_that_are_drawn_again_do_not_pile_up(step, raw):
    """A key waits behind the barrier like any array: a compiler that could draw early would hold all masks."""
    key = jax.random.PRNGKey(7) if raw else jax.random.key(7)
    args = step_programs._weights(8, 64), step_programs._data(2048, 64), key
    planned = jaxremat.jit(step, budget=0.5, donate_argnums=0, verify="replay")
    compiled = planned.lower(*args).compile()
    assert peak_bytes(compiled) <= 1.05 * planned.plan(*args).peak_bytes
    expected = numbers(jax.jit(step)(*args))
    for mine, other in zip(numbers(compiled(*copied(args))), expected, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-6)
