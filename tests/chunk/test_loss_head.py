"""Cross-entropy without logits in any loss: what the rewrite finds."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from loss_heads import VOCABULARY, WIDTH, cross_entropy, loss_head

from jaxremat import chunk

QUICKLY_COMPILED = {"xla_backend_optimization_level": 0}


@pytest.fixture(scope="module")
def head():
    return loss_head()


def integer_labels(h, e, y):
    return cross_entropy(h, e, y).mean()


def shifted_labels(h, e, y):
    return (
        cross_entropy(h, e, y)[:, :-1].sum()
        + optax.softmax_cross_entropy_with_integer_labels((h @ e)[:, :-1], y[:, 1:]).mean()
    )


def next_token(h, e, y):
    return optax.softmax_cross_entropy_with_integer_labels((h @ e)[:, :-1], y[:, 1:]).mean()


def log_softmax_and_take(h, e, y):
    return -jnp.take_along_axis(jax.nn.log_softmax(h @ e), y[..., None], -1).mean()


def one_hot(h, e, y):
    return -jnp.sum(jax.nn.one_hot(y, VOCABULARY) * jax.nn.log_softmax(h @ e), -1).mean()


def smoothed_labels(h, e, y):
    targets = optax.smooth_labels(jax.nn.one_hot(y, VOCABULARY), 0.1)
    return optax.softmax_cross_entropy(h @ e, targets).mean()


def z_loss_and_accuracy(h, e, y):
    logits = h @ e
    accuracy = (logits.argmax(-1) == y).mean()
    return cross_entropy(h, e, y).mean() + jnp.mean(jax.nn.logsumexp(logits, -1) ** 2) + jax.lax.stop_gradient(accuracy)


def dense_with_bias(h, e, y):
    logits = nn.Dense(VOCABULARY).apply({"params": {"kernel": e, "bias": e[0]}}, h)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def soft_capped_and_tied(h, e, y):
    logits = 3 * jnp.tanh(jnp.einsum("btd,vd->btv", h, e.T) / 3)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def masked_tokens(h, e, y):
    weights = (y > 3).astype(jnp.float32)
    return jnp.sum(cross_entropy(h, e, y) * weights) / jnp.sum(weights)


def flat_tokens(h, e, y):
    return cross_entropy(h.reshape(-1, WIDTH), e, y.reshape(-1)).mean()


def inside_jit_and_checkpoint(h, e, y):
    return jax.checkpoint(jax.jit(integer_labels))(h, e, y)


LOSSES = [
    integer_labels, next_token, log_softmax_and_take, one_hot, smoothed_labels, dense_with_bias,
    soft_capped_and_tied, masked_tokens, flat_tokens, inside_jit_and_checkpoint,
]  # fmt: skip


@pytest.mark.parametrize("loss", LOSSES, ids=lambda f: f.__name__)
def test_found_and_equal(loss, head):
    ours = chunk.rewrite(loss, token_chunk_size=3)
    report = ours.explain(*head)
    assert [f.replaced for f in report] == [True], str(report)
    run = lambda f: jax.jit(jax.value_and_grad(f, (0, 1)), compiler_options=QUICKLY_COMPILED)(*head)
    for got, wanted in zip(*map(jax.tree.leaves, (run(ours), run(loss)))):
        np.testing.assert_allclose(got, wanted, atol=2e-5)


@pytest.mark.parametrize("loss", [shifted_labels, z_loss_and_accuracy], ids=lambda f: f.__name__)
def test_several_products_keep_their_value(loss, head):
    ours = chunk.rewrite(loss, token_chunk_size=3)
    np.testing.assert_allclose(ours(*head), loss(*head), atol=2e-5)
    np.testing.assert_allclose(jax.grad(ours)(*head), jax.grad(loss)(*head), atol=2e-5)


def test_logits_in_use_elsewhere_are_left(head):
    def with_logits(h, e, y):
        logits = h @ e
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), logits

    (finding,) = chunk.rewrite(with_logits, token_chunk_size=3).explain(*head)
    assert not finding.replaced and "result of the function" in finding.reason


def test_an_activation_is_not_a_loss_head(head):
    mlp = lambda h, e, y: jnp.sum(jax.nn.softmax(h @ e) @ e.T) + jnp.sum(jnp.exp(h @ e))
    ours = chunk.rewrite(mlp, token_chunk_size=3)
    assert not any(f.replaced for f in ours.explain(*head))
    np.testing.assert_array_equal(ours(*head), mlp(*head))


def test_memory_of_an_unedited_loss():
    # Logits [4096, 32768] in float32 are 512 MiB, plain keeps at least two of them; a chunk has 128 tokens: 16 MiB.
    shapes = (
        jax.ShapeDtypeStruct((1, 4096, 64), jnp.float32),
        jax.ShapeDtypeStruct((64, 32768), jnp.float32),
        jax.ShapeDtypeStruct((1, 4096), jnp.int32),
    )
    temp_bytes = lambda f: (
        jax.jit(jax.value_and_grad(f, (0, 1))).lower(*shapes).compile().memory_analysis().temp_size_in_bytes
    )
    assert temp_bytes(integer_labels) > 1000 * 2**20
    assert temp_bytes(chunk.rewrite(integer_labels)) < 120 * 2**20
    assert temp_bytes(lambda h, e, y: chunk.softmax_cross_entropy(h, e, y).mean()) < 60 * 2**20
