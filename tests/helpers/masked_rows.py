"""Kernels of attention that go over rows of scores under a causal mask."""

import jax.numpy as jnp
from jax import lax


def causal(length):
    return jnp.tri(length, dtype=bool)


def read_from_memory(mask):
    return lax.optimization_barrier(mask)


def exponentials(scores, mask):
    masked = jnp.where(lax.expand_dims(mask, (0, 1)), scores, -1e9)
    return jnp.exp(masked - masked.max(-1, keepdims=True))


def sums(scores, _, mask):
    return exponentials(scores, mask).sum(-1)


def half_weights(scores, sums, mask):
    return (exponentials(scores, mask) / sums[..., None]).astype(jnp.bfloat16)


def weights(scores, sums, mask):
    return exponentials(scores, mask) / sums[..., None]


def gradient(scores, sums, mask):
    """Of scores, from what stands for the gradient of the weights."""
    shares = exponentials(scores, mask) / sums[..., None]
    given = scores * 2.0
    return jnp.where(lax.expand_dims(mask, (0, 1)), shares * (given - (shares * given).sum(-1, keepdims=True)), 0.0)


def softmax(scores, _, mask):
    made = exponentials(scores, mask)
    return made / made.sum(-1, keepdims=True)
