"""A Flax NNX model trained under a budget: dropout, batch statistics and the optimizer stay what they are."""

import logging

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import jaxremat

WIDTH, DEPTH, BATCH, STEPS = 64, 4, 4096, 10


class Block(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.norm = nnx.BatchNorm(WIDTH, rngs=rngs)
        self.up = nnx.Linear(WIDTH, 4 * WIDTH, rngs=rngs)
        self.down = nnx.Linear(4 * WIDTH, WIDTH, rngs=rngs)
        self.drop = nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, x):
        return x + self.down(self.drop(nnx.gelu(self.up(self.norm(x)))))


class Model(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.blocks = nnx.List([Block(rngs) for _ in range(DEPTH)])

    def __call__(self, x):
        for block in self.blocks:
            x = block(x)
        return x


def loss(model, x, y):
    return jnp.mean((model(x) - y) ** 2)


def train(loss):
    """Trains a fresh model; returns its losses."""
    model = Model(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, x, y):
        value, grads = nnx.value_and_grad(loss)(model, x, y)
        optimizer.update(model, grads)
        return value

    x = jax.random.normal(jax.random.key(0), (BATCH, WIDTH))
    return [float(step(model, optimizer, x, jnp.sin(x))) for _ in range(STEPS)]


def main():
    logging.basicConfig()
    logging.getLogger("jaxremat").setLevel(logging.INFO)  # what the decorator plans is logged
    plain, planned = train(loss), train(jaxremat.remat(loss, budget=0.6))
    print(f"{'':10}{'plain':>10}{'planned':>10}")
    for i in (0, STEPS // 2, STEPS - 1):
        print(f"{f'step {i}':10}{plain[i]:10.5f}{planned[i]:10.5f}")
    assert all(abs(a - b) < 1e-4 for a, b in zip(plain, planned))


if __name__ == "__main__":
    main()
