"""What cannot be understood is refused with what may have been meant."""

import jax.numpy as jnp
import pytest
from gradient_programs import layers_with_options

import jaxremat

W, X = jnp.ones((16, 16)), jnp.ones((256, 16))


@pytest.mark.parametrize(
    ("ask", "told"),
    [
        (lambda: jaxremat.plan(W, X, budget=0.5), "function"),
        (lambda: jaxremat.remat(W, budget=0.5), "function"),
        (lambda: jaxremat.jit(W, budget=0.5), "function"),
        (lambda: jaxremat.remat(layers_with_options, budget=0.5, emit="segment"), "Did you mean 'segments'"),
        (lambda: jaxremat.plan(layers_with_options, W, X, budget=1.0).apply({"w": W}), "function"),
        (lambda: jaxremat.plan(layers_with_options, W, X, budget="0.5"), "0.5 without quotes is a fraction"),
        (lambda: jaxremat.remat(layers_with_options, budget=".75"), "0.75 without quotes is a fraction"),
        (lambda: jaxremat.plan(layers_with_options, W, X, budget=0.5, argnums="w"), "argnums='w' must name"),
        (lambda: jaxremat.plan(layers_with_options, W, X, budget=0.5, argnums=2), r"0\.\.1"),
        (lambda: jaxremat.trace(layers_with_options, W, X, argnums=None), "argnums=None"),
    ],
)
def test_mistakes_get_an_answer(ask, told):
    with pytest.raises(jaxremat.ArgumentError, match=told):
        ask()
