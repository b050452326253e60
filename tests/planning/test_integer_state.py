"""Integers that one planned call makes and the next one reads: counters, the counts of random streams."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gradient_programs import assert_same, value_and_gradient

import jaxremat

X = jnp.asarray(np.random.default_rng(0).normal(size=(256, 8)), jnp.float32)


@pytest.mark.parametrize("emit", ["schedule", "segments"])
def test_of_a_plain_function_applied_twice(emit):
    def step(count, w, x):
        for _ in range(6):
            x = jnp.sin(x @ w)
        return count + 1, x

    def twice(step):
        return lambda w: (lambda count, x: jnp.sum(step(count, w, x)[1] ** 2))(*step(jnp.uint32(0), w, X))

    planned = jaxremat.remat(step, budget=0.75, emit=emit)
    assert_same(value_and_gradient(twice(planned), jnp.eye(8))[0], value_and_gradient(twice(step), jnp.eye(8))[0])


def test_of_a_linen_module_applied_twice():
    nn = pytest.importorskip("flax.linen")

    class Counting(nn.Module):
        @nn.compact
        def __call__(self, x):
            calls = self.variable("state", "calls", lambda: jnp.int32(0))
            calls.value += 1
            for _ in range(6):
                x = jnp.sin(nn.Dense(8)(x))
            return x

    class Shared(nn.Module):
        inner: type

        def setup(self):
            self.twice = self.inner()

        def __call__(self, x):
            return self.twice(self.twice(x))

    variables = Shared(Counting).init(jax.random.key(0), X)

    def loss(inner, params):
        y, new = Shared(inner).apply({**variables, "params": params}, X, mutable="state")
        return jnp.sum(y**2), new

    run = lambda inner: value_and_gradient(lambda p: loss(inner, p), variables["params"], has_aux=True)
    result, is_planned = run(jaxremat.linen.remat(Counting, budget=0.75))
    assert_same(result, run(Counting)[0])
    assert is_planned


def test_of_an_nnx_module_applied_twice():
    nnx = pytest.importorskip("flax.nnx")

    class Dropping(nnx.Module):
        def __init__(self, rngs):
            self.layers = nnx.List([nnx.Linear(8, 8, rngs=rngs) for _ in range(6)])
            self.dropout = nnx.Dropout(0.2, rngs=rngs)

        def __call__(self, x):
            for layer in self.layers:
                x = jnp.sin(layer(x))
            return self.dropout(x)

    def trained(cls):
        model = cls(nnx.Rngs(0))
        gradient = nnx.grad(lambda model: jnp.sum(model(model(X)) ** 2))(model)
        return jax.tree.leaves((gradient, nnx.state(model)))

    assert_same(trained(jaxremat.nnx.remat(Dropping, budget=0.75)), trained(Dropping))
