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
