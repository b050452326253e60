"""Cross-entropy without logits, against optax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.test_util import check_grads
from loss_heads import VOCABULARY, cross_entropy, loss_head

from jaxremat import chunk
from jaxremat.base.errors import ArgumentError


@pytest.fixture(scope="module")
def head():
    return loss_head()


@pytest.mark.parametrize("chunks", [(3, 16), (14, 16), (5, 40), (100, 100), (None, None)])
def test_function_agrees_with_optax(chunks, head):
    hidden, embedding, labels = head
    ours = lambda h, e: chunk.softmax_cross_entropy(
        h, e, labels, token_chunk_size=chunks[0], vocabulary_chunk_size=chunks[1]
    )
    loss = lambda f: jax.value_and_grad(lambda h, e: jnp.sum(jnp.sin(f(h, e))), (0, 1))(hidden, embedding)
    for got, wanted in zip(*map(jax.tree.leaves, (loss(ours), loss(lambda h, e: cross_entropy(h, e, labels))))):
        np.testing.assert_allclose(got, wanted, atol=2e-5)


def test_function_with_bias_and_every_derivative(head):
    hidden, embedding, labels = head
    bias = jnp.linspace(-1, 1, VOCABULARY)
    ours = lambda h, e, b: chunk.softmax_cross_entropy(
        h, e, labels[:1, :2], bias=b, token_chunk_size=1, vocabulary_chunk_size=16
    )
    args = (hidden[:1, :2] / 4, embedding, bias)
    np.testing.assert_allclose(
        ours(*args),
        optax.softmax_cross_entropy_with_integer_labels(args[0] @ embedding + bias, labels[:1, :2]),
        atol=1e-5,
    )
    check_grads(jax.jit(ours), args, order=2, atol=3e-2, rtol=3e-2, eps=1e-2)


def test_function_in_bfloat16(head):
    hidden, embedding, labels = head
    ours = chunk.softmax_cross_entropy(hidden.astype(jnp.bfloat16), embedding.astype(jnp.bfloat16), labels)
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, cross_entropy(hidden, embedding, labels), rtol=3e-2, atol=3e-2)


def test_function_refuses_what_does_not_fit(head):
    hidden, embedding, labels = head
    with pytest.raises(ArgumentError, match="vocabulary"):
        chunk.softmax_cross_entropy(hidden, embedding.T, labels)
    with pytest.raises(ArgumentError, match="integers"):
        chunk.softmax_cross_entropy(hidden, embedding, labels.astype(jnp.float32))
