"""Decorated Flax modules: the same parameters, state and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from counting import count

import jaxremat

nn = pytest.importorskip("flax.linen")
nnx = pytest.importorskip("flax.nnx")
X = jnp.asarray(np.random.default_rng(0).normal(size=(256, 16)), jnp.float32)
DEPTH = 12


class Tower(nn.Module):
    @nn.compact
    def __call__(self, x, power: int = 1):
        for _ in range(DEPTH):
            x = jnp.tanh(nn.Dense(16)(x)) ** power
        self.sow("intermediates", "mean", x.mean())
        return x


class Outer(nn.Module):
    tower: type

    @nn.compact
    def __call__(self, x):
        return nn.Dense(4)(self.tower()(self.tower()(x)))


def assert_close(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5)


def gradient(model, params, *args):
    return jax.jit(jax.grad(lambda p: jnp.sum(model.apply(p, X, *args) ** 2)))(params)


PLANNED = jaxremat.linen.remat(Tower, budget=0.8, static_argnums=(2,))


def test_linen_parameters_names_sown_values_and_static_arguments():
    params = Tower().init(jax.random.key(0), X)["params"]
    assert_close(PLANNED().init(jax.random.key(0), X)["params"], params)
    assert PLANNED.__name__ == "Tower"
    for power in (1, 2):
        assert_close(gradient(PLANNED(), {"params": params}, power), gradient(Tower(), {"params": params}, power))
    sown = lambda model: model.apply({"params": params}, X, mutable="intermediates")
    assert_close(sown(PLANNED()), sown(Tower()))


def test_linen_recomputes():
    params = Tower().init(jax.random.key(0), X)
    of = lambda model: lambda p: jnp.sum(model.apply(p, X) ** 2)
    assert count(of(PLANNED()), params, primitive="optimization_barrier") > 0


def test_linen_nested_and_applied_twice():
    params = Outer(Tower).init(jax.random.key(0), X)
    assert_close(gradient(Outer(PLANNED), params), gradient(Outer(Tower), params))


def test_nnx_class_method_and_state():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.layers = nnx.List([nnx.Linear(16, 16, rngs=rngs) for _ in range(DEPTH)])
            self.norm = nnx.BatchNorm(16, rngs=rngs)

        def __call__(self, x):
            for layer in self.layers:
                x = jnp.tanh(layer(x))
            return self.norm(x)

    planned = jaxremat.nnx.remat(Net, budget=0.8)
    results = []
    for cls in (Net, planned):
        net = cls(nnx.Rngs(0))
        grads = nnx.grad(lambda m: jnp.sum(m(X) ** 3))(net)
        results.append((jax.tree.leaves(nnx.state(net)), jax.tree.leaves(grads)))
    assert_close(*results)
