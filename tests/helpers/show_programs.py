"""Small programs for the tests of the display."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        h = checkpoint_name(nn.Dense(4 * x.shape[-1], name="up")(nn.LayerNorm()(x)), "projection")
        return x + nn.Dense(x.shape[-1], name="down")(nn.gelu(h))


class Tower(nn.Module):
    layers: int
    scan: bool = False

    @nn.compact
    def __call__(self, x):
        if self.scan:
            step = nn.scan(
                lambda block, carry, _: (block(carry), None),
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=self.layers,
            )
            return step(Block(), x, None)[0]
        for i in range(self.layers):
            x = Block(name=f"block_{i}")(x)
        return x


def tower(layers=6, scan=False, batch=256, width=32):
    """(loss, its arguments as shapes) of a stack of residual blocks."""
    model = Tower(layers, scan)
    x = jax.ShapeDtypeStruct((batch, width), jnp.float32)

    def loss(params, x):
        return jnp.mean(model.apply(params, x) ** 2)

    return loss, (jax.eval_shape(model.init, jax.random.key(0), x), x)


def unnamed():
    """The same kind of program without modules and without names."""
    shapes = [jax.ShapeDtypeStruct((32, 32), jnp.float32)] * 10

    def loss(weights, x):
        for w in weights:
            x = jnp.sin(x @ w)
        return x.sum()

    return loss, (shapes, jax.ShapeDtypeStruct((512, 32), jnp.float32))


def unnamed_program():
    """The smaller of the two, likewise."""
    return unnamed()


def tower_program():
    """For the command line: takes nothing, returns the function and its arguments."""
    return tower()


def random_like(tree, seed=0):
    leaves, treedef = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return jax.tree.unflatten(treedef, [jax.random.normal(k, s.shape, s.dtype) for k, s in zip(keys, leaves)])
