"""Losses over stacks of equal layers: of weights, one per layer, and rows."""

import jax
import jax.numpy as jnp


def layered(ws, x):
    for w in ws:
        x = x + jnp.tanh(x @ w)
    return jnp.mean(x**2)


def scanned(ws, x):
    return jnp.mean(jax.lax.scan(lambda x, w: (x + jnp.tanh(x @ w), None), x, jnp.stack(ws))[0] ** 2)


def attending(ws, x):
    for w in ws:
        x = x + jax.nn.softmax((x @ w) @ x.T) @ x
    return jnp.mean(x**2)


def gated(checkpoint=lambda fun: fun):
    """A loss of two gated layers and a head, each of them behind what `checkpoint` makes of it."""
    normal = jax.nn.standardize
    block = checkpoint(lambda p, x: x + (jax.nn.silu(normal(x) @ p[0]) * (normal(x) @ p[1])) @ p[2])
    head = checkpoint(lambda e, x: jax.nn.logsumexp(x @ e, -1).mean())

    def loss(blocks, e, x):
        for p in blocks:
            x = block(p, x)
        return head(e, x)

    return loss


def gated_in_checkpoints():
    """Its value and gradients, each part in a checkpoint of its own, and abstract arguments."""
    size = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    layers = [(size(512, 1536), size(512, 1536), size(1536, 512))] * 2
    return jax.value_and_grad(gated(jax.checkpoint)), (layers, size(512, 4096), size(4096, 512))
