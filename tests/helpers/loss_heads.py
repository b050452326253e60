"""A loss head over a vocabulary, and its cross-entropy by optax."""

import jax.numpy as jnp
import numpy as np
import optax

BATCH, LENGTH, WIDTH, VOCABULARY = 2, 7, 8, 40


def loss_head():
    """(hidden values, embedding, labels)."""
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(BATCH, LENGTH, WIDTH)), jnp.float32)
    embedding = jnp.asarray(rng.normal(size=(WIDTH, VOCABULARY)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, VOCABULARY, (BATCH, LENGTH)))
    return hidden, embedding, labels


def cross_entropy(hidden, embedding, labels):
    logits = (hidden @ embedding).astype(jnp.float32)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
