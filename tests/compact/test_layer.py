"""The layers for people who write compression into the model."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxremat import compact

nn = pytest.importorskip("flax.linen")
nnx = pytest.importorskip("flax.nnx")


def data(width=16, batch=64):
    x = jax.random.normal(jax.random.key(1), (batch, width))
    return x, jnp.roll(x, 1, -1) * jnp.tanh(x)


class Model(nn.Module):
    @nn.compact
    def __call__(self, x):
        gate, up = (compact.linen.Dense(32, rank=0.5, share="in", name=name)(x) for name in ("gate", "up"))
        return compact.linen.Dense(x.shape[-1], rank=0.5, name="down")(jnp.tanh(gate) * up)


def test_linen_trains_and_keeps_the_forward_exact():
    x, y = data()
    model, optimizer = Model(), optax.adam(1e-2)
    variables = model.init(jax.random.key(0), x)
    params, full = variables["params"], variables["compact"]
    assert params["up"]["kernel"].shape == (8, 32) and full["up"]["kernel"].shape == (16, 32)
    h = jnp.tanh(x @ full["gate"]["kernel"]) * (x @ full["up"]["kernel"])
    np.testing.assert_allclose(model.apply(variables, x), h @ full["down"]["kernel"], rtol=1e-4, atol=1e-5)
    assert full["gate"]["salt"] == full["up"]["salt"] != full["down"]["salt"]

    @jax.jit
    def step(params, full, opt_state):
        loss = lambda p: jnp.mean((model.apply({"params": p, "compact": full}, x) - y) ** 2)
        value, grads = jax.value_and_grad(loss)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        params, full = compact.linen.fold(optax.apply_updates(params, updates), full, refresh_every=10)
        return params, full, opt_state, value, grads

    opt_state, losses = optimizer.init(params), []
    for _ in range(80):
        params, full, opt_state, value, grads = step(params, full, opt_state)
        losses.append(float(value))
    assert losses[-1] < 0.6 * losses[0]
    assert grads["up"]["kernel"].shape == (8, 32)
    assert full["up"]["epoch"] == 8 and float(jnp.abs(params["up"]["kernel"]).max()) == 0


def test_linen_gradient_is_the_projected_one():
    """With the identity as input, the compressed gradient is Pᵀ ∂y, and a fold of Z moves the kernel by scale P Z."""
    layer = compact.linen.Dense(5, rank=4, use_bias=False)
    variables = layer.init(jax.random.key(0), jnp.eye(8))
    target = jax.random.normal(jax.random.key(2), (8, 5))
    loss = lambda p: jnp.vdot(layer.apply({"params": p, "compact": variables["compact"]}, jnp.eye(8)), target)
    grads = jax.grad(loss)(variables["params"])
    _, after = compact.linen.fold({"kernel": jnp.eye(4, 5)}, variables["compact"], scale=2.0)
    matrix = (after["kernel"] - variables["compact"]["kernel"])[:, :4] / 2
    np.testing.assert_allclose(grads["kernel"], matrix.T @ target, rtol=1e-4, atol=1e-5)


def test_linen_under_scan():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return x + jnp.tanh(compact.linen.Dense(x.shape[-1], rank=4, name="mix")(x)), None

    axes = {"params": 0, "compact": 0}
    model = nn.scan(Block, variable_axes=axes, split_rngs={"params": True}, length=3)()
    x, _ = data()
    variables = model.init(jax.random.key(0), x, None)
    loss = lambda p: jnp.sum(model.apply({"params": p, "compact": variables["compact"]}, x, None)[0] ** 2)
    grads = jax.grad(loss)(variables["params"])
    assert grads["mix"]["kernel"].shape == (3, 4, 16)
    params, full = compact.linen.fold(jax.tree.map(lambda g: -0.01 * g, grads), variables["compact"])
    moved = jnp.abs(full["mix"]["kernel"] - variables["compact"]["mix"]["kernel"]).max((1, 2))
    assert params["mix"]["kernel"].shape == (3, 4, 16) and (moved > 0).all() and (full["mix"]["steps"] == 1).all()


def test_nnx_trains():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.gate = compact.nnx.Linear(16, 32, rank=8, rngs=rngs)
            self.up = compact.nnx.Linear(16, 32, rank=8, rngs=rngs, share=self.gate)
            self.down = compact.nnx.Linear(32, 16, rank=0.5, rngs=rngs)

        def __call__(self, x):
            return self.down(jnp.tanh(self.gate(x)) * self.up(x))

    x, y = data()
    model = Net(nnx.Rngs(0))
    assert model.gate.salt[...] == model.up.salt[...] != model.down.salt[...]
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        value, grads = nnx.value_and_grad(lambda model: jnp.mean((model(x) - y) ** 2))(model)
        optimizer.update(model, grads)
        compact.nnx.fold(model, refresh_every=10)
        return value

    losses = [float(step(model, optimizer)) for _ in range(80)]
    assert losses[-1] < 0.6 * losses[0]
    assert model.up.epoch[...] == 8 and float(jnp.abs(model.up.kernel[...]).max()) == 0


def test_flax_is_imported_only_when_a_layer_is_used():
    loaded = "'flax' in sys.modules"
    code = f"import sys, jaxremat.compact as c; assert not {loaded}; c.linen.Dense; assert {loaded}"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="haiku"):
        _ = compact.haiku
